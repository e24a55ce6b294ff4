"""The pictures of one run: what it learned, sent and spent of its privacy. `None` where there is nothing to draw."""

import math
from itertools import accumulate
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedglm.reports.formats import byte_count, counted, fewer, metric_value, significant, times
from fedglm.reports.html.axes import (
    DASH_DOT,
    DASHED,
    DOTTED,
    Curve,
    byte_axis,
    curve,
    drawable,
    legend_above,
    limits,
    round_axis,
    spans_decades,
    value_axis,
)
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Html
from fedglm.run_folder.record import RunRecord, Score, Traffic

Measure = Literal["metric", "loss"]
_SIZE = (350.0, 224.0)


def value_of(score: Score | None, measure: Measure) -> float | None:
    """The loss or the metric of a score."""
    return None if score is None else score.loss if measure == "loss" else score.metric


def written(run: RunRecord, measure: Measure, value: float | None) -> str:
    """A loss or the run's metric as the page writes it."""
    return significant(value) if measure == "loss" else metric_value(run.metric, value)


def _kind(run: RunRecord, measure: Measure) -> str:
    return "loss" if measure == "loss" else run.metric


def _line(axes: Axes, points: Curve, ink: Ink, label: str) -> None:
    axes.plot(points.x, points.y, color=ink.value, label=label, marker="o", markersize=3.4, markevery=points.marked)


def learning_by_round(run: RunRecord, measure: Measure) -> Html | None:
    """Loss or metric after each round, with the pooled and the stand-alone models as levels."""
    points = curve((record.round, value_of(record.score, measure)) for record in run.rounds)
    if not points.x:
        return None
    start = value_of(run.initial, measure)
    if drawable(start):
        points = Curve((0, *points.x), (start, *points.y))
    levels = [
        (label, level, style, ink)
        for label, score, style, ink in (
            ("all data pooled", run.pooled, DASH_DOT, Ink.POOLED),
            ("alone (mean)", run.alone, DOTTED, Ink.ALONE),
        )
        if drawable(level := value_of(score, measure))
    ]
    values = [*points.y, *(level for _, level, _, _ in levels)]
    log = _kind(run, measure) == "perplexity" and spans_decades(values)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for label, level, style, ink in levels:
            axes.axhline(level, color=ink.value, linestyle=style, linewidth=1.5, label=label)
        _line(axes, points, Ink.CODED, "federated")
        value_axis(axes, "y", _kind(run, measure), *limits(values, log=log), log=log)
        round_axis(axes, points.x[-1], first=min(points.x[0], 1))
        if levels:
            legend_above(axes, columns=3)

    said = [f"{label} {written(run, measure, level)}" for label, level, _, _ in levels]
    alternative = (
        f"{_kind(run, measure).capitalize()} by round: from {written(run, measure, points.y[0])} at round "
        f"{points.x[0]:.0f} to {written(run, measure, points.y[-1])} after round {points.x[-1]:.0f}"
        + "".join(f"; {text}" for text in said)
        + "."
    )
    return inline_svg(draw, name=f"{measure}-round", size=_SIZE, alternative=alternative)


def learning_by_bytes(run: RunRecord, measure: Measure) -> Html | None:
    """Loss or metric over all bytes sent so far (log), and the same rounds where dense float32 would have put them."""
    spent = list(accumulate((record.traffic for record in run.rounds), initial=Traffic()))[1:]
    scores = [value_of(record.score, measure) for record in run.rounds]
    coded = curve((t.total or None, y) for t, y in zip(spent, scores, strict=True))
    dense = curve((t.dense_total or None, y) for t, y in zip(spent, scores, strict=True))
    if not coded.x:
        return None
    ratio = coded.x[-1] / dense.x[-1] if dense.x else None
    saves = ratio is not None and ratio < 0.95
    ends = [*coded.x, *dense.x] if saves else [*coded.x]
    start = value_of(run.initial, measure)
    levels = [*coded.y, *([start] if drawable(start) else [])]
    log = _kind(run, measure) == "perplexity" and spans_decades(levels)
    at_top = coded.y[-1] > coded.y[0] or (len(coded.y) == 1 and _kind(run, measure) == "accuracy")

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        room = 0.3 if saves else 0.07
        low, high = limits(levels, log=log, below=0.07 if at_top else room, above=room if at_top else 0.07)
        value_axis(axes, "y", _kind(run, measure), low, high, log=log)
        byte_axis(axes, "x", *limits(ends, log=True, below=0.05, above=0.05))
        axes.set_xlabel("bytes sent, both ways (log scale)")
        if saves:
            axes.plot(
                dense.x,
                dense.y,
                color=Ink.DENSE.value,
                linestyle=DASHED,
                marker="o",
                markersize=3.4,
                markerfacecolor=Ink.PAPER.value,
                markevery=dense.marked,
                label="the same rounds in dense FP32",
            )
        _line(axes, coded, Ink.CODED, "as sent")
        if saves and ratio is not None:
            _bracket(axes, coded.x[-1], dense.x[-1], coded.y[-1], at_top, f"{times(1 / ratio)} times fewer bytes")
            legend_above(axes)

    alternative = (
        f"{_kind(run, measure).capitalize()} by bytes sent, both ways: {written(run, measure, coded.y[-1])} after "
        f"{byte_count(coded.x[-1])}"
        + (f"; dense float32 would have taken {byte_count(dense.x[-1])}, {fewer(ratio)} sent" if saves else "")
        + "."
    )
    return inline_svg(draw, name=f"{measure}-bytes", size=_SIZE, alternative=alternative)


def _bracket(axes: Axes, left: float, right: float, value: float, at_top: bool, label: str) -> None:
    # Two leaders from the ends of the curves to an arrow near the edge of the plot, the saving written on it.
    level, text = (0.88, 0.905) if at_top else (0.12, 0.095)
    across = axes.get_xaxis_transform()
    low, high = axes.get_ylim()
    share = (
        (math.log(value / low) / math.log(high / low)) if axes.get_yscale() == "log" else (value - low) / (high - low)
    )
    for x in (left, right):
        axes.plot([x, x], [share, level], transform=across, color=Ink.MUTED.value, linewidth=0.8)
    arrow = {"arrowstyle": "<|-|>,head_width=0.22,head_length=0.4", "color": Ink.MUTED.value, "linewidth": 0.9}
    axes.annotate(
        "",
        (left, level),
        (right, level),
        xycoords=across,
        textcoords=across,
        arrowprops={**arrow, "shrinkA": 0, "shrinkB": 0},
    )
    axes.text(
        math.sqrt(left * right),
        text,
        label,
        transform=across,
        ha="center",
        va="bottom" if at_top else "top",
        fontsize=9.5,
        fontweight="bold",
    )


def traffic_by_round(run: RunRecord, way: Literal["up", "down"]) -> Html | None:
    """Bytes of each round one way, as sent and dense, on a log axis that both ways share."""
    sent = [record.traffic for record in run.rounds]
    coded = curve((r.round, (t.up if way == "up" else t.down) or None) for r, t in zip(run.rounds, sent, strict=True))
    dense = curve(
        (r.round, (t.dense_up if way == "up" else t.dense_down) or None) for r, t in zip(run.rounds, sent, strict=True)
    )
    if not coded.x:
        return None
    every = [n for t in sent for n in (t.up, t.down, t.dense_up, t.dense_down) if n]
    every.append(max(1, min(min(every), max(every) // 20)))  # a scale wide enough to tell equal from near

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        byte_axis(axes, "y", *limits(every, log=True, below=0.12, above=0.12))
        if dense.x:
            axes.plot(
                dense.x,
                dense.y,
                color=Ink.DENSE.value,
                linestyle=DASHED,
                marker="o" if len(dense.x) == 1 else None,
                markerfacecolor=Ink.PAPER.value,
                zorder=3,
                label="dense FP32",
            )
        _line(axes, coded, Ink.CODED, "as sent")
        round_axis(axes, coded.x[-1], first=min(1, coded.x[0]))
        legend_above(axes)

    mean = sum(coded.y) / len(coded.y)
    dense_mean = f", dense {byte_count(sum(dense.y) / len(dense.y))}" if dense.x else ""
    alternative = (
        f"Bytes {way} by round, {counted(len(coded.x), 'round')}: {byte_count(mean)} a round on average{dense_mean}; "
        f"least {byte_count(min(coded.y))}, most {byte_count(max(coded.y))}."
    )
    return inline_svg(draw, name=f"bytes-{way}", size=(350, 200), alternative=alternative)


def epsilon_by_round(run: RunRecord) -> Html | None:
    """The privacy loss spent so far, the greatest over the nodes, against the run's total."""
    points = curve((record.round, record.epsilon) for record in run.rounds)
    if not points.x:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _line(axes, points, Ink.CODED, "ε spent")
        value_axis(axes, "y", "epsilon", *limits([0, *points.y], log=False, below=0))
        round_axis(axes, points.x[-1], first=min(1, points.x[0]))

    alternative = f"ε by round: {significant(points.y[0], 3)} at first, {significant(points.y[-1], 3)} at the end."
    return inline_svg(draw, name="epsilon", size=(350, 170), alternative=alternative)
