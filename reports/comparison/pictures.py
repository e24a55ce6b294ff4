"""The pictures of a comparison: the loss of every codec by bytes and by round, and the bytes to the target."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedglm.reports.comparison.formats import name_of
from fedglm.reports.comparison.to_target import Comparison, Standing
from fedglm.reports.formats import byte_count, significant
from fedglm.reports.html.axes import (
    DASH_DOT,
    DASHED,
    DOTTED,
    Curve,
    byte_axis,
    drawable,
    legend_above,
    limits,
    round_axis,
    value_axis,
)
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Html, clean
from fedglm.run_folder.record import RunRecord, Traffic

# Colour, line and marker all differ: no codec is told by its colour alone.
_INKS = tuple(ink for ink in Ink if ink.name.startswith("SERIES"))
_LINES = ("solid", DASH_DOT, DOTTED, (0, (7, 1.5)))
_MARKERS = "osD^vPX<"
_NAME_LENGTH = 44
_TWO_COLUMNS = 19  # letters of a name, up to which two stand side by side in a legend
_TIMES_TARGET = 2.0
_FEW_SEEDS = 3  # below, each seed has a thin line of its own

Place = Callable[[Traffic], float | None]


@dataclass(frozen=True)
class _Learning:
    """The loss of a codec: the mean over its seeds at each round, the least and the greatest, and every seed's own."""

    mean: Curve
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: tuple[Curve, ...]


def _short(label: str) -> str:
    shown = " ".join(clean(label).split())
    return shown if len(shown) <= _NAME_LENGTH else shown[: _NAME_LENGTH - 1] + "…"


def _points(run: RunRecord, place: Place | None) -> list[tuple[float | None, float | None]]:
    """Where each round's loss is drawn: at its number, or at what `place` makes of the bytes sent until its end."""
    losses = [record.score.loss for record in run.rounds]
    if place is None:
        start = [(0.0, run.initial.loss)] if run.initial else []
        return [*start, *((float(r.round), loss) for r, loss in zip(run.rounds, losses, strict=True))]
    spent = list(accumulate((record.traffic for record in run.rounds), initial=Traffic()))[1:]
    return [(place(traffic) or None, loss) for traffic, loss in zip(spent, losses, strict=True)]


def _learning(standing: Standing, place: Place | None) -> _Learning:
    rows = zip(*(_points(trial.run, place) for trial in standing.trials), strict=False)
    # A round counts where every seed has a loss: the mean of those that did not diverge would flatter.
    kept = [
        [(x, y) for x, y in row if drawable(x) and drawable(y)]
        for row in rows
        if all(drawable(x) and drawable(y) for x, y in row)
    ]
    xs = tuple(math.fsum(x for x, _ in row) / len(row) for row in kept)
    ys = tuple(math.fsum(y for _, y in row) / len(row) for row in kept)
    return _Learning(
        mean=Curve(xs, ys),
        low=tuple(min(y for _, y in row) for row in kept),
        high=tuple(max(y for _, y in row) for row in kept),
        seeds=tuple(
            Curve(tuple(row[seed][0] for row in kept), tuple(row[seed][1] for row in kept))
            for seed in range(len(standing.trials))
        ),
    )


def _spaced(points: int, index: int) -> tuple[int, int]:
    # About ten markers a line, each line's set off from the others', so that those of equal curves do not coincide.
    every = max(1, points // 10)
    return index % every, every


def _draw_learning(axes: Axes, index: int, label: str, learning: _Learning) -> None:
    ink = _INKS[index % len(_INKS)].value
    if len(learning.seeds) > 1:
        axes.fill_between(learning.mean.x, learning.low, learning.high, color=ink, alpha=0.16, linewidth=0)
        for own in learning.seeds if len(learning.seeds) < _FEW_SEEDS else ():
            axes.plot(own.x, own.y, color=ink, linewidth=0.6)
    axes.plot(
        learning.mean.x,
        learning.mean.y,
        color=ink,
        linestyle=_LINES[index % len(_LINES)],
        marker=_MARKERS[index % len(_MARKERS)],
        markersize=4,
        markevery=_spaced(len(learning.mean.x), index),
        linewidth=1.6,
        label=label,
    )


def greatest_drawn(comparison: Comparison) -> float | None:
    """The loss above which pictures are cut off; None where all is drawn.

    Codecs part near the target, and the steep beginning would press that part flat.
    """
    target = comparison.target
    if target is None or not target.mean > 0:
        return None
    losses = (r.score.loss for standing in comparison.standings for t in standing.trials for r in t.run.rounds)
    top = _TIMES_TARGET * target.high
    return top if any(drawable(loss) and loss > top for loss in losses) else None


def _losses(comparison: Comparison, name: str, what: str, place: Place | None) -> Html | None:
    learnings = [_learning(standing, place) for standing in comparison.standings]
    values = [y for learning in learnings for y in (*learning.low, *learning.high)]
    if not values:
        return None
    target = comparison.target
    names = [_short(name_of(comparison, standing)) for standing in comparison.standings]
    columns = 2 if max(map(len, names)) <= _TWO_COLUMNS else 1

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (label, learning) in enumerate(zip(names, learnings, strict=True)):
            _draw_learning(axes, index, label, learning)
        if target is not None:
            if target.high > target.low:
                axes.axhspan(target.low, target.high, color=Ink.MUTED.value, alpha=0.13, linewidth=0)
            axes.axhline(target.mean, color=Ink.MUTED.value, linewidth=1.1, linestyle=DASHED, label="target")
        top = greatest_drawn(comparison)
        shown = [value for value in values if top is None or value <= top]
        low, high = limits([*shown, *([target.low] if target else [])], log=False)
        value_axis(axes, "y", "loss", low, high if top is None else top)
        points = [xy for learning in learnings for xy in zip(learning.mean.x, learning.mean.y, strict=True)]
        near = [x for x, y in points if place is None or top is None or y <= top]
        xs = near or [x for x, _ in points]
        if place is None:
            round_axis(axes, max(xs), first=min(xs))
        else:
            byte_axis(axes, "x", *limits(xs, log=True, below=0.05, above=0.05))
            axes.set_xlabel(f"{what} (log scale)")
        legend_above(axes, columns, topmost_first=False)

    ends = "; ".join(
        f"{standing.label} {significant(learning.mean.y[-1])}"
        + (f" after {byte_count(learning.mean.x[-1])}" if place else "")
        for standing, learning in zip(comparison.standings, learnings, strict=True)
        if learning.mean.x
    )
    alternative = f"Loss by {what}, where each codec ends: {ends}."
    height = 220 + 15 * math.ceil((len(names) + 1) / columns)
    return inline_svg(draw, name=name, size=(350, height), alternative=alternative)


def losses_by_round(comparison: Comparison) -> Html | None:
    """The loss of every codec after each round, and the target."""
    return _losses(comparison, "compare-round", "round", None)


def losses_by_upload(comparison: Comparison) -> Html | None:
    """The loss of every codec over all bytes that its nodes have sent (log), and the target."""
    return _losses(comparison, "compare-upload", "bytes uploaded", lambda traffic: traffic.up)


def losses_by_bytes(comparison: Comparison) -> Html | None:
    """The loss of every codec over all bytes sent both ways (log), and the target."""
    return _losses(comparison, "compare-bytes", "bytes sent, both ways", lambda traffic: traffic.total)


def bytes_to_target(comparison: Comparison) -> Html | None:
    """One row a codec: the bytes sent until the target, up and both ways (log); or that it was not reached."""
    standings = comparison.standings
    spent = [(s.bytes_to_target("up"), s.bytes_to_target("total")) for s in standings]
    known = [spread.mean for pair in spent for spread in pair if spread and spread.mean > 0]
    if not known:
        return None
    places = [[spread.mean for spread in pair if spread and spread.mean > 0] for pair in spent]

    def note(standing: Standing) -> str:
        up, total = standing.bytes_to_target("up"), standing.bytes_to_target("total")
        return f"{byte_count(up.mean)}, {byte_count(total.mean)}" if up and total else "not reached"

    def title(standing: Standing) -> str:
        part = 0 < standing.reached < len(standing.trials)
        return _short(name_of(comparison, standing)) + (
            f" ({standing.reached} of {len(standing.trials)} seeds)" if part else ""
        )

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        low, high = limits(known, log=True, below=0.06, above=0.55)
        low, high = low / 1.3, high * 1.3
        byte_axis(axes, "x", low, high)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        for row, (standing, xs) in enumerate(zip(standings, places, strict=True)):
            ink = _INKS[row % len(_INKS)].value
            axes.annotate(
                title(standing), (low, row), (0, 9), textcoords="offset points", fontsize=9.5, color=Ink.MUTED.value
            )
            axes.hlines([row] * len(xs[1:]), xs[:1], xs[1:], color=ink, linewidth=1.6)
            axes.plot(xs[:1], [row] * len(xs[:1]), marker="o", markersize=5, color=ink)
            axes.plot(xs[1:], [row] * len(xs[1:]), marker="o", markersize=9, markerfacecolor="none", color=ink)
            place = (max(xs, default=low), row)
            shift = (10 if xs else 0, 0)
            axes.annotate(note(standing), place, shift, textcoords="offset points", va="center", fontsize=9.5)
        axes.set_yticks([])
        axes.set_ylim(len(spent) - 0.5, -0.75)
        axes.set_xlabel("bytes sent until the target (log scale)")

    said = "; ".join(f"{title(standing)} {note(standing)}" for standing in standings)
    alternative = f"Bytes to the target, up and both ways: {said}."
    return inline_svg(draw, name="compare-target", size=(350, 62 + 38 * len(spent)), alternative=alternative)
