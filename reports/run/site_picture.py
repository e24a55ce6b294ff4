"""Picture of the sites: the federated model's result at each, its interval, and the model trained there alone."""

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedglm.reports.formats import format_metric
from fedglm.reports.html.axes import DASH_DOT, compute_limits, is_drawable, place_legend_above, set_value_axis
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Html, clean
from fedglm.run_folder.record import RunRecord, SiteRecord

NAMED_SITES = 30
DRAWN_SITES = 150
_NAME_LENGTH = 22
_Z = 1.959964  # two-sided 95 %


def wilson_interval(accuracy: float, rows: int) -> tuple[float, float]:
    """Compute the 95 % score interval of an accuracy measured on independent rows (Wilson 1927).

    Args:
        accuracy: Share of rows that are classified correctly, 0 to 1.
        rows: Number of rows, at least 1.
    """
    weight = _Z * _Z / rows
    centre = (accuracy + weight / 2) / (1 + weight)
    half = math.sqrt(accuracy * (1 - accuracy) * weight + weight * weight / 4) / (1 + weight)
    return max(0.0, centre - half), min(1.0, centre + half)


def select_measured_sites(run: RunRecord) -> tuple[SiteRecord, ...]:
    """Return the sites at which the federated model has a finite metric."""
    return tuple(s for s in run.sites if is_drawable(s.score.metric))


def rank_sites(run: RunRecord) -> tuple[SiteRecord, ...]:
    """Return the measured sites from best to worst, ties by name."""
    sign = -1 if run.metric == "accuracy" else 1
    return tuple(sorted(select_measured_sites(run), key=lambda site: (sign * (site.score.metric or 0), site.name)))


def _select_drawn_sites(run: RunRecord) -> tuple[SiteRecord, ...]:
    """Return the sites that the picture shows: in their own order up to 30, else from best to worst, 150 at most."""
    sites = select_measured_sites(run)
    if len(sites) <= NAMED_SITES:
        return sites
    in_order = rank_sites(run)
    if len(in_order) <= DRAWN_SITES:
        return in_order
    step = (len(in_order) - 1) / (DRAWN_SITES - 1)
    return tuple(in_order[round(index * step)] for index in range(DRAWN_SITES))


def _compute_interval(run: RunRecord, site: SiteRecord) -> tuple[float, float] | None:
    value = site.score.metric
    if run.metric != "accuracy" or value is None or not site.held_out or not 0 <= value <= 1:
        return None
    return wilson_interval(value, site.held_out)


def _shorten(name: str) -> str:
    shown = " ".join(clean(name).split())
    return shown if len(shown) <= _NAME_LENGTH else shown[: _NAME_LENGTH - 1] + "…"


def draw_sites(run: RunRecord) -> Html | None:
    """Draw one row a site: a dot for the federated model, its 95 % interval, a diamond for the model trained alone."""
    sites = _select_drawn_sites(run)
    if not sites:
        return None
    named = len(sites) <= NAMED_SITES
    pitch = 19.0 if named else max(3.6, 420 / len(sites))
    intervals = [_compute_interval(run, site) for site in sites]
    alone = [site.alone.metric if site.alone else None for site in sites]
    level = run.pooled.metric if run.pooled else None
    pooled = level if is_drawable(level) else None
    federated = [site.score.metric or 0.0 for site in sites]
    others = [value for value in alone if is_drawable(value)]
    edges = [edge for interval in intervals if interval for edge in interval]
    values = [*federated, *others, *edges, *([] if pooled is None else [pooled])]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = range(len(sites))
        if any(intervals):
            spans = [(row, interval) for row, interval in zip(rows, intervals, strict=True) if interval]
            axes.hlines(
                [row for row, _ in spans],
                [interval[0] for _, interval in spans],
                [interval[1] for _, interval in spans],
                color=Ink.BAND.value,
                linewidth=7 if named else min(5.0, 0.7 * pitch),
                label="95% interval",
            )
        if pooled is not None:
            axes.axvline(pooled, color=Ink.POOLED.value, linestyle=DASH_DOT, linewidth=1.5, label="all data pooled")
        if others:
            _draw_models_trained_alone(axes, federated, alone, named)
        axes.plot(
            federated, rows, linestyle="none", marker="o", markersize=5 if named else 3, color=Ink.CODED.value,
            label="federated",
        )  # fmt: skip
        low, high = compute_limits(values, log=False, below=0.06, above=0.06)
        set_value_axis(axes, "x", run.metric, low, min(high, 1.015) if run.metric == "accuracy" else high)
        axes.set_ylim(len(sites) - 0.4, -0.6)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(f"{run.metric} on the site's held-out rows")
        if named:
            axes.set_yticks(list(rows), [_shorten(site.name) for site in sites])
        else:
            marks = sorted({0, len(sites) // 2, len(sites) - 1})
            axes.set_yticks(marks, [_shorten(sites[mark].name) for mark in marks])
        place_legend_above(axes)

    lowest, highest = min(federated), max(federated)
    alternative = (
        f"{run.metric.capitalize()} of the federated model at {len(sites)} sites: from "
        f"{format_metric(run.metric, lowest)} to {format_metric(run.metric, highest)}"
        + ". The table beside it gives each site's figures."
    )
    return inline_svg(draw, name="sites", size=(330, 86 + pitch * len(sites)), alternative=alternative)


def _draw_models_trained_alone(
    axes: Axes, federated: Sequence[float], alone: Sequence[float | None], named: bool
) -> None:
    kept = [
        (row, here, there) for row, (here, there) in enumerate(zip(federated, alone, strict=True)) if is_drawable(there)
    ]
    rows = [row for row, _, _ in kept]
    heres, theirs = [here for _, here, _ in kept], [there for _, _, there in kept]
    axes.hlines(rows, heres, theirs, color=Ink.ALONE.value, linewidth=1.1 if named else 0.7)
    axes.plot(
        theirs, rows, linestyle="none", marker="D", markersize=7 if named else 3.6, label="trained alone",
        markeredgecolor=Ink.ALONE.value, markerfacecolor="none", markeredgewidth=1.3 if named else 0.8,
    )  # fmt: skip
