"""Cost of privacy: codecs under several epsilons, by loss and bytes, for those who set the policy."""

import math
from dataclasses import dataclass

from matplotlib.figure import Figure

from fedglm.reports.comparison.labels import without_epsilon
from fedglm.reports.comparison.to_target import CodecResult, Comparison
from fedglm.reports.formats import format_bytes, format_metric, format_number
from fedglm.reports.html.axes import (
    DASH_DOT,
    DASHED,
    DOTTED,
    compute_limits,
    place_legend_above,
    set_byte_axis,
    set_value_axis,
)
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Column, Html, element, section, table
from fedglm.reports.run.sections import figure

_SIZE_TOLERANCE = 0.02
"""Relative difference in bytes that noise alone makes; smaller differences do not count."""

_INKS = tuple(ink for ink in Ink if ink.name.startswith("SERIES"))
_MARKERS = "osD^vPX<"
_LINES = ("solid", DASHED, DASH_DOT, DOTTED)


@dataclass(frozen=True)
class TradeoffPoint:
    """Results of one codec under one epsilon.

    Attributes:
        codec: Label of the codec, without the epsilon.
        epsilon: Epsilon of the scenario; infinite without noise.
        loss: Final loss, mean over the seeds; None where one is not finite.
        metric: Final accuracy or perplexity, likewise.
        bytes: Bytes of a run in both directions, mean over the seeds.
    """

    codec: str
    epsilon: float
    loss: float | None
    metric: float | None
    bytes: float


def collect_tradeoff_points(comparison: Comparison) -> list[TradeoffPoint]:
    """Return a point for each codec and epsilon; none where all runs have the same epsilon."""
    points = [_make_tradeoff_point(codec) for codec in comparison.codecs]
    return points if len({point.epsilon for point in points}) > 1 else []


def select_pareto_front(points: list[TradeoffPoint]) -> list[TradeoffPoint]:
    """Return the points that no other dominates: none has at most its epsilon, bytes and loss, and less of one.

    Bytes that differ by less than `_SIZE_TOLERANCE` count as equal.
    """

    def dominates(one: TradeoffPoint, other: TradeoffPoint) -> bool:
        if one.loss is None or other.loss is None:
            return one.loss is not None
        pairs = [(one.epsilon, other.epsilon), (one.loss, other.loss)]
        is_larger = one.bytes > (1 + _SIZE_TOLERANCE) * other.bytes
        is_smaller = one.bytes < (1 - _SIZE_TOLERANCE) * other.bytes
        no_worse = all(mine <= theirs for mine, theirs in pairs) and not is_larger
        return no_worse and (is_smaller or any(mine < theirs for mine, theirs in pairs))

    return [
        point for point in points if point.loss is not None and not any(dominates(other, point) for other in points)
    ]


def render_privacy_cost(comparison: Comparison) -> Html:
    """Render the section; nothing where all runs have the same epsilon."""
    points = collect_tradeoff_points(comparison)
    if not points:
        return Html()
    metric = comparison.codecs[0].run.metric
    pictures = element(
        "div",
        figure("Loss by epsilon", _draw_by_epsilon(points)),
        figure("Loss by bytes, both ways", _draw_by_bytes(points), "One mark a run; a ring: no other run beats it."),
        class_="pictures",
    )
    columns = [Column("Codec", figures=False), *map(Column, ("Epsilon", "Loss", metric.capitalize(), "Bytes"))]
    columns.append(Column("Not beaten", figures=False))
    pareto_front = select_pareto_front(points)
    rows = [
        (point.codec, _format_epsilon(point.epsilon), format_number(point.loss), format_metric(metric, point.metric),
         format_bytes(point.bytes), "yes" if point in pareto_front else "")
        for point in sorted(points, key=lambda point: (point.codec, -point.epsilon))
    ]  # fmt: skip
    note = (
        "Not beaten: no other run here has no more epsilon, no more bytes and no more loss. Noise differs from run to "
        "run; small differences are chance."
    )
    grid = table("Loss, bytes and epsilon of whole runs", columns, rows)
    return section("price", "What privacy costs", pictures, grid, element("p", note, class_="note"))


def _make_tradeoff_point(codec: CodecResult) -> TradeoffPoint:
    privacy = codec.run.settings.get("privacy")
    epsilon = privacy.get("epsilon") if isinstance(privacy, dict) else None
    losses = [seed_run.run.final.loss for seed_run in codec.seed_runs]
    metrics = [seed_run.run.final.metric for seed_run in codec.seed_runs]
    return TradeoffPoint(
        codec=without_epsilon(codec.label),
        epsilon=math.inf if epsilon is None else float(epsilon),
        loss=_mean(losses),
        metric=_mean(metrics),
        bytes=sum(seed_run.run.traffic.total for seed_run in codec.seed_runs) / len(codec.seed_runs),
    )


def _mean(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if values and len(finite) == len(values) else None


def _format_epsilon(epsilon: float) -> str:
    return "no noise" if math.isinf(epsilon) else f"{epsilon:g}"


def _select_drawable(points: list[TradeoffPoint]) -> list[tuple[TradeoffPoint, float]]:
    return [(point, point.loss) for point in points if point.loss is not None]


def _draw_by_epsilon(points: list[TradeoffPoint]) -> Html | None:
    places = {epsilon: place for place, epsilon in enumerate(sorted({point.epsilon for point in points}))}
    codecs = list(dict.fromkeys(point.codec for point in points))
    losses = [loss for _, loss in _select_drawable(points)]
    if not losses:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, codec in enumerate(codecs):
            own = [(point, loss) for point, loss in _select_drawable(points) if point.codec == codec]
            coordinates = sorted((places[point.epsilon], loss) for point, loss in own)
            axes.plot(
                [x for x, _ in coordinates], [y for _, y in coordinates], color=_INKS[number % len(_INKS)].value,
                linestyle=_LINES[number % len(_LINES)], marker=_MARKERS[number % len(_MARKERS)], markersize=5,
                label=codec,
            )  # fmt: skip
        set_value_axis(axes, "y", "loss", *compute_limits(losses, log=False))
        axes.set_xticks(list(places.values()), [_format_epsilon(epsilon) for epsilon in places])
        axes.set_xlim(-0.3, len(places) - 0.7)
        axes.set_xlabel("epsilon: to the left, more private")
        place_legend_above(axes, columns=2, topmost_first=False)

    values = "; ".join(
        f"{o.codec} at {_format_epsilon(o.epsilon)}: {format_number(loss)}" for o, loss in _select_drawable(points)
    )
    return inline_svg(draw, name="price-epsilon", size=(350, 240), alternative=f"Loss by epsilon. {values}.")


def _draw_by_bytes(points: list[TradeoffPoint]) -> Html | None:
    drawn = _select_drawable(points)
    epsilons, codecs = sorted({o.epsilon for o in points}), list(dict.fromkeys(o.codec for o in points))
    pareto_front = select_pareto_front(points)
    if not drawn:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for point, loss in drawn:
            ink = _INKS[epsilons.index(point.epsilon) % len(_INKS)].value
            mark = _MARKERS[codecs.index(point.codec) % len(_MARKERS)]
            axes.plot([point.bytes], [loss], color=ink, marker=mark, markersize=6, linestyle="none")
            if point in pareto_front:
                axes.plot(
                    [point.bytes], [loss], marker="o", markersize=12, markerfacecolor="none",
                    markeredgecolor=Ink.MUTED.value, linestyle="none",
                )  # fmt: skip
        for epsilon in epsilons:
            ink = _INKS[epsilons.index(epsilon) % len(_INKS)].value
            axes.plot([], [], color=ink, marker="o", linestyle="none", label=f"epsilon {_format_epsilon(epsilon)}")
        set_value_axis(axes, "y", "loss", *compute_limits([loss for _, loss in drawn], log=False))
        set_byte_axis(axes, "x", *compute_limits([point.bytes for point, _ in drawn], log=True, below=0.15, above=0.15))
        axes.set_xlabel("bytes of the whole run, both ways (log scale)")
        place_legend_above(axes, columns=2, topmost_first=False)

    values = "; ".join(
        f"{o.codec}, epsilon {_format_epsilon(o.epsilon)}: {format_number(loss)} for {format_bytes(o.bytes)}"
        for o, loss in drawn
    )
    return inline_svg(draw, name="price-bytes", size=(350, 240), alternative=f"Loss by bytes. {values}.")
