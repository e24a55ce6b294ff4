"""What privacy costs: codecs under several epsilons, by loss and bytes, for whoever sets the policy."""

import math
from dataclasses import dataclass

from matplotlib.figure import Figure

from fedglm.reports.comparison.labels import without_epsilon
from fedglm.reports.comparison.to_target import Comparison, Standing
from fedglm.reports.formats import byte_count, metric_value, significant
from fedglm.reports.html.axes import DASH_DOT, DASHED, DOTTED, byte_axis, legend_above, limits, value_axis
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Column, Html, element, section, table
from fedglm.reports.run.sections import figure

_SAME = 0.02
"""Of bytes: what noise alone makes of a run's size."""

_INKS = tuple(ink for ink in Ink if ink.name.startswith("SERIES"))
_MARKERS = "osD^vPX<"
_LINES = ("solid", DASHED, DASH_DOT, DOTTED)


@dataclass(frozen=True)
class Offer:
    """What one codec gives under one epsilon.

    Attributes:
        codec: Its name and settings, without the epsilon.
        epsilon: That the run was asked for; infinite without noise.
        loss: At the end, mean over the seeds; None where one was not finite.
        metric: Accuracy or perplexity, likewise.
        bytes: Of the whole run, both ways.
    """

    codec: str
    epsilon: float
    loss: float | None
    metric: float | None
    bytes: float


def offers(comparison: Comparison) -> list[Offer]:
    """Of all runs; those under no more than one epsilon are no price list, and there are none."""
    found = [_offer(standing) for standing in comparison.standings]
    return found if len({offer.epsilon for offer in found}) > 1 else []


def best_offers(found: list[Offer]) -> list[Offer]:
    """Those that no other beats: as private, with no more bytes and no more loss, and better in one of them."""

    def beats(one: Offer, other: Offer) -> bool:
        if one.loss is None or other.loss is None:
            return one.loss is not None
        pairs = [(one.epsilon, other.epsilon), (one.loss, other.loss)]
        no_worse = all(mine <= theirs for mine, theirs in pairs) and one.bytes <= (1 + _SAME) * other.bytes
        return no_worse and (any(mine < theirs for mine, theirs in pairs) or one.bytes < (1 - _SAME) * other.bytes)

    return [offer for offer in found if offer.loss is not None and not any(beats(other, offer) for other in found)]


def price(comparison: Comparison) -> Html:
    """The section; nothing where the runs have one epsilon."""
    found = offers(comparison)
    if not found:
        return Html()
    metric = comparison.standings[0].run.metric
    pictures = element(
        "div",
        figure("Loss by epsilon", _by_epsilon(found)),
        figure("Loss by bytes, both ways", _by_bytes(found), "One mark a run; a ring: no other run beats it."),
        class_="pictures",
    )
    columns = [Column("Codec", figures=False), *map(Column, ("Epsilon", "Loss", metric.capitalize(), "Bytes"))]
    columns.append(Column("Not beaten", figures=False))
    unbeaten = best_offers(found)
    rows = [
        (offer.codec, _named(offer.epsilon), significant(offer.loss), metric_value(metric, offer.metric),
         byte_count(offer.bytes), "yes" if offer in unbeaten else "")
        for offer in sorted(found, key=lambda offer: (offer.codec, -offer.epsilon))
    ]  # fmt: skip
    note = (
        "Not beaten: no other run here has no more epsilon, no more bytes and no more loss. Noise differs from run to "
        "run; small differences are chance."
    )
    grid = table("Loss, bytes and epsilon of whole runs", columns, rows)
    return section("price", "What privacy costs", pictures, grid, element("p", note, class_="note"))


def _offer(standing: Standing) -> Offer:
    privacy = standing.run.settings.get("privacy")
    asked = privacy.get("epsilon") if isinstance(privacy, dict) else None
    losses = [trial.run.final.loss for trial in standing.trials]
    metrics = [trial.run.final.metric for trial in standing.trials]
    return Offer(
        codec=without_epsilon(standing.label),
        epsilon=math.inf if asked is None else float(asked),
        loss=_mean(losses),
        metric=_mean(metrics),
        bytes=sum(trial.run.traffic.total for trial in standing.trials) / len(standing.trials),
    )


def _mean(values: list[float | None]) -> float | None:
    good = [value for value in values if value is not None and math.isfinite(value)]
    return sum(good) / len(good) if values and len(good) == len(values) else None


def _named(epsilon: float) -> str:
    return "no noise" if math.isinf(epsilon) else f"{epsilon:g}"


def _drawn(found: list[Offer]) -> list[tuple[Offer, float]]:
    return [(offer, offer.loss) for offer in found if offer.loss is not None]


def _by_epsilon(found: list[Offer]) -> Html | None:
    places = {epsilon: place for place, epsilon in enumerate(sorted({offer.epsilon for offer in found}))}
    codecs = list(dict.fromkeys(offer.codec for offer in found))
    losses = [loss for _, loss in _drawn(found)]
    if not losses:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for number, codec in enumerate(codecs):
            points = sorted((places[offer.epsilon], loss) for offer, loss in _drawn(found) if offer.codec == codec)
            axes.plot(
                [x for x, _ in points], [y for _, y in points], color=_INKS[number % len(_INKS)].value,
                linestyle=_LINES[number % len(_LINES)], marker=_MARKERS[number % len(_MARKERS)], markersize=5,
                label=codec,
            )  # fmt: skip
        value_axis(axes, "y", "loss", *limits(losses, log=False))
        axes.set_xticks(list(places.values()), [_named(epsilon) for epsilon in places])
        axes.set_xlim(-0.3, len(places) - 0.7)
        axes.set_xlabel("epsilon: to the left, more private")
        legend_above(axes, columns=2, topmost_first=False)

    said = "; ".join(f"{o.codec} at {_named(o.epsilon)}: {significant(loss)}" for o, loss in _drawn(found))
    return inline_svg(draw, name="price-epsilon", size=(350, 240), alternative=f"Loss by epsilon. {said}.")


def _by_bytes(found: list[Offer]) -> Html | None:
    drawn = _drawn(found)
    epsilons, codecs = sorted({o.epsilon for o in found}), list(dict.fromkeys(o.codec for o in found))
    unbeaten = best_offers(found)
    if not drawn:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for offer, loss in drawn:
            ink = _INKS[epsilons.index(offer.epsilon) % len(_INKS)].value
            mark = _MARKERS[codecs.index(offer.codec) % len(_MARKERS)]
            axes.plot([offer.bytes], [loss], color=ink, marker=mark, markersize=6, linestyle="none")
            if offer in unbeaten:
                axes.plot(
                    [offer.bytes], [loss], marker="o", markersize=12, markerfacecolor="none",
                    markeredgecolor=Ink.MUTED.value, linestyle="none",
                )  # fmt: skip
        for epsilon in epsilons:
            ink = _INKS[epsilons.index(epsilon) % len(_INKS)].value
            axes.plot([], [], color=ink, marker="o", linestyle="none", label=f"epsilon {_named(epsilon)}")
        value_axis(axes, "y", "loss", *limits([loss for _, loss in drawn], log=False))
        byte_axis(axes, "x", *limits([offer.bytes for offer, _ in drawn], log=True, below=0.15, above=0.15))
        axes.set_xlabel("bytes of the whole run, both ways (log scale)")
        legend_above(axes, columns=2, topmost_first=False)

    said = "; ".join(
        f"{o.codec}, epsilon {_named(o.epsilon)}: {significant(loss)} for {byte_count(o.bytes)}" for o, loss in drawn
    )
    return inline_svg(draw, name="price-bytes", size=(350, 240), alternative=f"Loss by bytes. {said}.")
