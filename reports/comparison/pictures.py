"""Pictures of a comparison: the loss of every codec by bytes and by round, and the bytes to the target."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedglm.reports.comparison.formats import choose_name
from fedglm.reports.comparison.to_target import CodecResult, Comparison
from fedglm.reports.formats import format_bytes, format_number
from fedglm.reports.html.axes import (
    DASH_DOT,
    DASHED,
    DOTTED,
    Curve,
    compute_limits,
    is_drawable,
    place_legend_above,
    set_byte_axis,
    set_round_axis,
    set_value_axis,
)
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Html, clean
from fedglm.run_folder.record import RunRecord
from fedglm.run_folder.traffic import Traffic

# Colour, line and marker all differ, so that no codec is identified by its colour alone.
_INKS = tuple(ink for ink in Ink if ink.name.startswith("SERIES"))
_LINES = ("solid", DASH_DOT, DOTTED, (0, (7, 1.5)))
_MARKERS = "osD^vPX<"
_NAME_LENGTH = 44
_TWO_COLUMNS = 19  # longest name, in characters, with which a legend has two columns
_MAX_OVER_TARGET = 2.0
_FEW_SEEDS = 3  # with fewer seeds, each is also drawn as a thin line

TrafficMeasure = Callable[[Traffic], float | None]


@dataclass(frozen=True)
class _LearningCurve:
    """Loss of a codec by round.

    Attributes:
        mean: Mean over the seeds.
        low: Minimum over the seeds at each point of `mean`.
        high: Maximum, likewise.
        seeds: Curve of each seed.
    """

    mean: Curve
    low: tuple[float, ...]
    high: tuple[float, ...]
    seeds: tuple[Curve, ...]


def _shorten(label: str) -> str:
    shown = " ".join(clean(label).split())
    return shown if len(shown) <= _NAME_LENGTH else shown[: _NAME_LENGTH - 1] + "…"


def _collect_points(run: RunRecord, measure: TrafficMeasure | None) -> list[tuple[float | None, float | None]]:
    """Return the points of a run: loss by round, or by what `measure` takes of the bytes sent so far."""
    losses = [record.score.loss for record in run.rounds]
    if measure is None:
        start = [(0.0, run.initial.loss)] if run.initial else []
        return [*start, *((float(r.round), loss) for r, loss in zip(run.rounds, losses, strict=True))]
    spent = list(accumulate((record.traffic for record in run.rounds), initial=Traffic()))[1:]
    return [(measure(traffic) or None, loss) for traffic, loss in zip(spent, losses, strict=True)]


def _average_learning(codec: CodecResult, measure: TrafficMeasure | None) -> _LearningCurve:
    rows = zip(*(_collect_points(seed_run.run, measure) for seed_run in codec.seed_runs), strict=False)
    # Only rounds in which every seed has a loss: a mean without the seeds that diverged would be biased.
    kept = [
        [(x, y) for x, y in row if is_drawable(x) and is_drawable(y)]
        for row in rows
        if all(is_drawable(x) and is_drawable(y) for x, y in row)
    ]
    xs = tuple(math.fsum(x for x, _ in row) / len(row) for row in kept)
    ys = tuple(math.fsum(y for _, y in row) / len(row) for row in kept)
    return _LearningCurve(
        mean=Curve(xs, ys),
        low=tuple(min(y for _, y in row) for row in kept),
        high=tuple(max(y for _, y in row) for row in kept),
        seeds=tuple(
            Curve(tuple(row[seed][0] for row in kept), tuple(row[seed][1] for row in kept))
            for seed in range(len(codec.seed_runs))
        ),
    )


def _space_markers(points: int, index: int) -> tuple[int, int]:
    # About ten markers a line, shifted from line to line, so that the markers of equal curves do not coincide.
    every = max(1, points // 10)
    return index % every, every


def _draw_learning(axes: Axes, index: int, label: str, learning: _LearningCurve) -> None:
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
        markevery=_space_markers(len(learning.mean.x), index),
        linewidth=1.6,
        label=label,
    )


def max_drawn_loss(comparison: Comparison) -> float | None:
    """Return the loss above which pictures are cut off; None where all losses are drawn.

    Codecs differ near the target, and a scale that includes the steep beginning would flatten that part.
    """
    target = comparison.target
    if target is None or not target.mean > 0:
        return None
    losses = (r.score.loss for codec in comparison.codecs for t in codec.seed_runs for r in t.run.rounds)
    top = _MAX_OVER_TARGET * target.high
    return top if any(is_drawable(loss) and loss > top for loss in losses) else None


def _draw_losses(comparison: Comparison, name: str, axis_label: str, measure: TrafficMeasure | None) -> Html | None:
    learnings = [_average_learning(codec, measure) for codec in comparison.codecs]
    values = [y for learning in learnings for y in (*learning.low, *learning.high)]
    if not values:
        return None
    target = comparison.target
    names = [_shorten(choose_name(comparison, codec)) for codec in comparison.codecs]
    columns = 2 if max(map(len, names)) <= _TWO_COLUMNS else 1

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (label, learning) in enumerate(zip(names, learnings, strict=True)):
            _draw_learning(axes, index, label, learning)
        if target is not None:
            if target.high > target.low:
                axes.axhspan(target.low, target.high, color=Ink.MUTED.value, alpha=0.13, linewidth=0)
            axes.axhline(target.mean, color=Ink.MUTED.value, linewidth=1.1, linestyle=DASHED, label="target")
        top = max_drawn_loss(comparison)
        shown = [value for value in values if top is None or value <= top]
        low, high = compute_limits([*shown, *([target.low] if target else [])], log=False)
        set_value_axis(axes, "y", "loss", low, high if top is None else top)
        points = [xy for learning in learnings for xy in zip(learning.mean.x, learning.mean.y, strict=True)]
        near = [x for x, y in points if measure is None or top is None or y <= top]
        xs = near or [x for x, _ in points]
        if measure is None:
            set_round_axis(axes, max(xs), first=min(xs))
        else:
            set_byte_axis(axes, "x", *compute_limits(xs, log=True, below=0.05, above=0.05))
            axes.set_xlabel(f"{axis_label} (log scale)")
        place_legend_above(axes, columns, topmost_first=False)

    ends = "; ".join(
        f"{codec.label} {format_number(learning.mean.y[-1])}"
        + (f" after {format_bytes(learning.mean.x[-1])}" if measure else "")
        for codec, learning in zip(comparison.codecs, learnings, strict=True)
        if learning.mean.x
    )
    alternative = f"Loss by {axis_label}, where each codec ends: {ends}."
    height = 220 + 15 * math.ceil((len(names) + 1) / columns)
    return inline_svg(draw, name=name, size=(350, height), alternative=alternative)


def draw_losses_by_round(comparison: Comparison) -> Html | None:
    """Draw the loss of every codec after each round, and the target."""
    return _draw_losses(comparison, "compare-round", "round", None)


def draw_losses_by_upload(comparison: Comparison) -> Html | None:
    """Draw the loss of every codec over the bytes that its nodes have sent (log), and the target."""
    return _draw_losses(comparison, "compare-upload", "bytes uploaded", lambda traffic: traffic.uplink)


def draw_losses_by_bytes(comparison: Comparison) -> Html | None:
    """Draw the loss of every codec over the bytes sent in both directions (log), and the target."""
    return _draw_losses(comparison, "compare-bytes", "bytes sent, both ways", lambda traffic: traffic.total)


def draw_bytes_to_target(comparison: Comparison) -> Html | None:
    """Draw one row a codec: bytes sent until the target, uplink and both ways (log), or that it was not reached."""
    codecs = comparison.codecs
    spent = [(s.bytes_to_target("up"), s.bytes_to_target("total")) for s in codecs]
    known = [spread.mean for pair in spent for spread in pair if spread and spread.mean > 0]
    if not known:
        return None
    places = [[spread.mean for spread in pair if spread and spread.mean > 0] for pair in spent]

    def format_bytes_sent(codec: CodecResult) -> str:
        up, total = codec.bytes_to_target("up"), codec.bytes_to_target("total")
        return f"{format_bytes(up.mean)}, {format_bytes(total.mean)}" if up and total else "not reached"

    def format_name(codec: CodecResult) -> str:
        is_partial = 0 < codec.reached < len(codec.seed_runs)
        return _shorten(choose_name(comparison, codec)) + (
            f" ({codec.reached} of {len(codec.seed_runs)} seeds)" if is_partial else ""
        )

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        low, high = compute_limits(known, log=True, below=0.06, above=0.55)
        low, high = low / 1.3, high * 1.3
        set_byte_axis(axes, "x", low, high)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        for row, (codec, xs) in enumerate(zip(codecs, places, strict=True)):
            ink = _INKS[row % len(_INKS)].value
            axes.annotate(
                format_name(codec), (low, row), (0, 9), textcoords="offset points", fontsize=9.5, color=Ink.MUTED.value
            )
            axes.hlines([row] * len(xs[1:]), xs[:1], xs[1:], color=ink, linewidth=1.6)
            axes.plot(xs[:1], [row] * len(xs[:1]), marker="o", markersize=5, color=ink)
            axes.plot(xs[1:], [row] * len(xs[1:]), marker="o", markersize=9, markerfacecolor="none", color=ink)
            anchor = (max(xs, default=low), row)
            shift = (10 if xs else 0, 0)
            axes.annotate(
                format_bytes_sent(codec), anchor, shift, textcoords="offset points", va="center", fontsize=9.5
            )
        axes.set_yticks([])
        axes.set_ylim(len(spent) - 0.5, -0.75)
        axes.set_xlabel("bytes sent until the target (log scale)")

    rows = "; ".join(f"{format_name(codec)} {format_bytes_sent(codec)}" for codec in codecs)
    alternative = f"Bytes to the target, up and both ways: {rows}."
    return inline_svg(draw, name="compare-target", size=(350, 62 + 38 * len(spent)), alternative=alternative)
