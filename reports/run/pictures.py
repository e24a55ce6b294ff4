"""Pictures of one run: learning, traffic and privacy loss. `None` where there is nothing to draw."""

import math
from itertools import accumulate
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedglm.reports.formats import describe_saving, format_bytes, format_factor, format_metric, format_number, pluralize
from fedglm.reports.html.axes import (
    DASH_DOT,
    DASHED,
    DOTTED,
    Curve,
    compute_limits,
    is_drawable,
    make_curve,
    place_legend_above,
    set_byte_axis,
    set_round_axis,
    set_value_axis,
    spans_decades,
)
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Html
from fedglm.run_folder.record import RunRecord, Score
from fedglm.run_folder.traffic import Traffic

Measure = Literal["metric", "loss"]
_SIZE = (350.0, 224.0)


def select_value(score: Score | None, measure: Measure) -> float | None:
    """Return the loss or the metric of a score."""
    return None if score is None else score.loss if measure == "loss" else score.metric


def format_measure(run: RunRecord, measure: Measure, value: float | None) -> str:
    """Format a loss, or a value of the run's metric."""
    return format_number(value) if measure == "loss" else format_metric(run.metric, value)


def _name_measure(run: RunRecord, measure: Measure) -> str:
    return "loss" if measure == "loss" else run.metric


def _plot_line(axes: Axes, points: Curve, ink: Ink, label: str) -> None:
    axes.plot(points.x, points.y, color=ink.value, label=label, marker="o", markersize=3.4, markevery=points.marked)


def draw_learning_by_round(run: RunRecord, measure: Measure) -> Html | None:
    """Draw loss or metric after each round, with the pooled and the stand-alone models as horizontal lines."""
    points = make_curve((record.round, select_value(record.score, measure)) for record in run.rounds)
    if not points.x:
        return None
    start = select_value(run.initial, measure)
    if is_drawable(start):
        points = Curve((0, *points.x), (start, *points.y))
    levels = [
        (label, level, style, ink)
        for label, score, style, ink in (
            ("all data pooled", run.pooled, DASH_DOT, Ink.POOLED),
            ("alone (mean)", run.alone, DOTTED, Ink.ALONE),
        )
        if is_drawable(level := select_value(score, measure))
    ]
    values = [*points.y, *(level for _, level, _, _ in levels)]
    log = _name_measure(run, measure) == "perplexity" and spans_decades(values)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for label, level, style, ink in levels:
            axes.axhline(level, color=ink.value, linestyle=style, linewidth=1.5, label=label)
        _plot_line(axes, points, Ink.CODED, "federated")
        set_value_axis(axes, "y", _name_measure(run, measure), *compute_limits(values, log=log), log=log)
        set_round_axis(axes, points.x[-1], first=min(points.x[0], 1))
        if levels:
            place_legend_above(axes, columns=3)

    baselines = [f"{label} {format_measure(run, measure, level)}" for label, level, _, _ in levels]
    alternative = (
        f"{_name_measure(run, measure).capitalize()} by round: from {format_measure(run, measure, points.y[0])} at "
        f"round {points.x[0]:.0f} to {format_measure(run, measure, points.y[-1])} after round {points.x[-1]:.0f}"
        + "".join(f"; {text}" for text in baselines)
        + "."
    )
    return inline_svg(draw, name=f"{measure}-round", size=_SIZE, alternative=alternative)


def draw_learning_by_bytes(run: RunRecord, measure: Measure) -> Html | None:
    """Draw loss or metric over the bytes sent so far (log), and the same rounds at the bytes of dense float32."""
    spent = list(accumulate((record.traffic for record in run.rounds), initial=Traffic()))[1:]
    scores = [select_value(record.score, measure) for record in run.rounds]
    coded = make_curve((t.total or None, y) for t, y in zip(spent, scores, strict=True))
    dense = make_curve((t.dense_total or None, y) for t, y in zip(spent, scores, strict=True))
    if not coded.x:
        return None
    ratio = coded.x[-1] / dense.x[-1] if dense.x else None
    saves = ratio is not None and ratio < 0.95
    ends = [*coded.x, *dense.x] if saves else [*coded.x]
    start = select_value(run.initial, measure)
    levels = [*coded.y, *([start] if is_drawable(start) else [])]
    log = _name_measure(run, measure) == "perplexity" and spans_decades(levels)
    at_top = coded.y[-1] > coded.y[0] or (len(coded.y) == 1 and _name_measure(run, measure) == "accuracy")

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        room = 0.3 if saves else 0.07
        low, high = compute_limits(levels, log=log, below=0.07 if at_top else room, above=room if at_top else 0.07)
        set_value_axis(axes, "y", _name_measure(run, measure), low, high, log=log)
        set_byte_axis(axes, "x", *compute_limits(ends, log=True, below=0.05, above=0.05))
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
        _plot_line(axes, coded, Ink.CODED, "as sent")
        if saves and ratio is not None:
            _draw_bracket(
                axes, coded.x[-1], dense.x[-1], coded.y[-1], at_top, f"{format_factor(1 / ratio)} times fewer bytes"
            )
            place_legend_above(axes)

    alternative = (
        f"{_name_measure(run, measure).capitalize()} by bytes sent, both ways: "
        f"{format_measure(run, measure, coded.y[-1])} after {format_bytes(coded.x[-1])}"
        + (
            f"; dense float32 would have taken {format_bytes(dense.x[-1])}, {describe_saving(ratio)} sent"
            if saves
            else ""
        )
        + "."
    )
    return inline_svg(draw, name=f"{measure}-bytes", size=_SIZE, alternative=alternative)


def _draw_bracket(axes: Axes, left: float, right: float, value: float, at_top: bool, label: str) -> None:
    # Two lines from the ends of the curves to an arrow near the edge of the plot, labelled with the saving.
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


def draw_traffic_by_round(run: RunRecord, direction: Literal["up", "down"]) -> Html | None:
    """Draw the bytes of each round in one direction, as sent and dense, on a log axis that both directions share."""
    sent = [record.traffic for record in run.rounds]
    coded = make_curve(
        (r.round, (t.uplink if direction == "up" else t.downlink) or None)
        for r, t in zip(run.rounds, sent, strict=True)
    )
    dense = make_curve(
        (r.round, (t.dense_uplink if direction == "up" else t.dense_downlink) or None)
        for r, t in zip(run.rounds, sent, strict=True)
    )
    if not coded.x:
        return None
    every = [n for t in sent for n in (t.uplink, t.downlink, t.dense_uplink, t.dense_downlink) if n]
    every.append(max(1, min(min(every), max(every) // 20)))  # wide enough that near values do not look far apart

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        set_byte_axis(axes, "y", *compute_limits(every, log=True, below=0.12, above=0.12))
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
        _plot_line(axes, coded, Ink.CODED, "as sent")
        set_round_axis(axes, coded.x[-1], first=min(1, coded.x[0]))
        place_legend_above(axes)

    mean = sum(coded.y) / len(coded.y)
    dense_mean = f", dense {format_bytes(sum(dense.y) / len(dense.y))}" if dense.x else ""
    alternative = (
        f"Bytes {direction} by round, {pluralize(len(coded.x), 'round')}: {format_bytes(mean)} a round on average"
        f"{dense_mean}; least {format_bytes(min(coded.y))}, most {format_bytes(max(coded.y))}."
    )
    return inline_svg(draw, name=f"bytes-{direction}", size=(350, 200), alternative=alternative)


def draw_epsilon_by_round(run: RunRecord) -> Html | None:
    """Draw the privacy loss spent after each round, the largest over the nodes."""
    points = make_curve((record.round, record.epsilon) for record in run.rounds)
    if not points.x:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        _plot_line(axes, points, Ink.CODED, "ε spent")
        set_value_axis(axes, "y", "epsilon", *compute_limits([0, *points.y], log=False, below=0))
        set_round_axis(axes, points.x[-1], first=min(1, points.x[0]))

    alternative = f"ε by round: {format_number(points.y[0], 3)} at first, {format_number(points.y[-1], 3)} at the end."
    return inline_svg(draw, name="epsilon", size=(350, 170), alternative=alternative)
