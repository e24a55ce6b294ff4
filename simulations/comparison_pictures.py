"""The pictures of a comparison: the loss of every run by round and by bytes, and the bytes to the target."""

import math
from itertools import accumulate

from matplotlib.figure import Figure

from fedglm.simulations.axes import (
    DASH_DOT,
    DASHED,
    DOTTED,
    Curve,
    byte_axis,
    curve,
    legend_above,
    limits,
    round_axis,
    value_axis,
)
from fedglm.simulations.inline_svg import Ink, inline_svg
from fedglm.simulations.markup import Html, clean
from fedglm.simulations.run_record import RunRecord, Traffic
from fedglm.simulations.to_target import Comparison
from fedglm.simulations.wording import byte_count, significant

# Colour, line and marker all differ: no run is told by its colour alone.
_INKS = tuple(ink for ink in Ink if ink.name.startswith("SERIES"))
_LINES = ("solid", DASHED, DASH_DOT, DOTTED)
_MARKERS = "osD^vPX<"
_NAME_LENGTH = 26


def _short(label: str) -> str:
    shown = " ".join(clean(label).split())
    return shown if len(shown) <= _NAME_LENGTH else shown[: _NAME_LENGTH - 1] + "…"


def _by_round(run: RunRecord) -> Curve:
    start = [(0.0, run.initial.loss)] if run.initial else []
    return curve([*start, *((float(record.round), record.score.loss) for record in run.rounds)])


def _by_bytes(run: RunRecord) -> Curve:
    spent = list(accumulate((record.traffic for record in run.rounds), initial=Traffic()))[1:]
    return curve((t.total or None, record.score.loss) for t, record in zip(spent, run.rounds, strict=True))


def _spaced(points: int, index: int) -> tuple[int, int]:
    # About ten markers a line, each line's set off from the others', so that those of equal curves do not coincide.
    every = max(1, points // 10)
    return index % every, every


def _losses(comparison: Comparison, curves: list[Curve], name: str, *, in_bytes: bool) -> Html | None:
    values = [y for points in curves for y in points.y]
    if not values:
        return None
    target = comparison.target

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (standing, points) in enumerate(zip(comparison.standings, curves, strict=True)):
            axes.plot(
                points.x,
                points.y,
                color=_INKS[index % len(_INKS)].value,
                linestyle=_LINES[index % len(_LINES)],
                marker=_MARKERS[index % len(_MARKERS)],
                markersize=4,
                markevery=_spaced(len(points.x), index),
                linewidth=1.6,
                label=_short(standing.label),
            )
        if target is not None:
            axes.axhline(target, color=Ink.MUTED.value, linewidth=1, linestyle=DOTTED, label="target")
        value_axis(axes, "y", "loss", *limits([*values, *([target] if target else [])], log=False))
        xs = [x for points in curves for x in points.x]
        if in_bytes:
            byte_axis(axes, "x", *limits(xs, log=True, below=0.05, above=0.05))
            axes.set_xlabel("bytes sent, both ways (log scale)")
        else:
            round_axis(axes, max(xs), first=min(xs))
        legend_above(axes, topmost_first=False)

    ends = "; ".join(
        f"{standing.label} {significant(points.y[-1])}" + (f" after {byte_count(points.x[-1])}" if in_bytes else "")
        for standing, points in zip(comparison.standings, curves, strict=True)
        if points.x
    )
    alternative = f"Loss by {'bytes sent' if in_bytes else 'round'}, where each run ends: {ends}."
    height = 230 + 15 * math.ceil((len(curves) + 1) / 2)
    return inline_svg(draw, name=name, size=(350, height), alternative=alternative)


def losses_by_round(comparison: Comparison) -> Html | None:
    """The loss of every run after each round, and the target."""
    return _losses(comparison, [_by_round(s.run) for s in comparison.standings], "compare-round", in_bytes=False)


def losses_by_bytes(comparison: Comparison) -> Html | None:
    """The loss of every run over all bytes it has sent (log), and the target."""
    return _losses(comparison, [_by_bytes(s.run) for s in comparison.standings], "compare-bytes", in_bytes=True)


def bytes_to_target(comparison: Comparison) -> Html | None:
    """One row a run: the bytes it sent until the target, on a log scale; those that never got there are said to."""
    standings = comparison.standings
    spent = [standing.reached.traffic.total if standing.reached else 0 for standing in standings]
    known = [total for total in spent if total > 0]
    if not known:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        low, high = limits(known, log=True, below=0.12, above=0.42)
        byte_axis(axes, "x", low / 1.3, high * 1.3)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        for row, total in enumerate(spent):
            if total:
                ink = _INKS[row % len(_INKS)].value
                axes.hlines(row, low / 1.3, total, color=ink, linewidth=1.6)
                axes.plot([total], [row], marker=_MARKERS[row % len(_MARKERS)], markersize=7, color=ink)
            note = byte_count(total) if total else "not reached"
            axes.annotate(note, (total or low, row), (9, 0), textcoords="offset points", va="center", fontsize=9.5)
        axes.set_yticks(range(len(spent)), [_short(standing.label) for standing in standings])
        axes.set_ylim(len(spent) - 0.4, -0.6)
        axes.set_xlabel("bytes sent until the target, both ways (log scale)")

    said = "; ".join(
        f"{standing.label} {byte_count(total) if total else 'not reached'}"
        for standing, total in zip(standings, spent, strict=True)
    )
    return inline_svg(
        draw, name="compare-target", size=(330, 58 + 26 * len(spent)), alternative=f"Bytes to the target: {said}."
    )
