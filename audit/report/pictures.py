"""Draws epsilon by round and site, beside what the sites' policies permit."""

from matplotlib.figure import Figure

from fedglm.audit.report.facts import AuditFacts
from fedglm.reports.html.axes import (
    DASHED,
    compute_limits,
    make_curve,
    place_legend_above,
    set_round_axis,
    set_value_axis,
)
from fedglm.reports.html.inline_svg import Ink, inline_svg
from fedglm.reports.html.markup import Html

_MAX_SITES = 8
_SERIES = [ink for ink in Ink if ink.name.startswith("SERIES")]


def draw_epsilon_by_site(facts: AuditFacts) -> Html | None:
    """Draw curves for the up to eight sites that spent most; None if nothing was spent."""
    runs = {entry["run"] for entry in facts.server_entries if entry["kind"] == "begun"}
    curves = {
        site.name: make_curve((entry["round"], entry["epsilon"]) for entry in site.releases if entry["run"] in runs)
        for site in facts.sites
    }
    drawn = sorted((name for name in curves if curves[name].x), key=lambda name: -curves[name].y[-1])[:_MAX_SITES]
    if not drawn:
        return None
    permitted = [site.weakest_budget.limit for site in facts.sites if site.weakest_budget and site.weakest_budget.limit]
    limit = min(permitted, default=None)
    values = [0.0, *(value for name in drawn for value in curves[name].y), *([limit] if limit else [])]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        if limit is not None:
            axes.axhline(limit, color=Ink.ALONE.value, linestyle=DASHED, linewidth=1.5, label="least limit")
        for name, ink in zip(drawn, _SERIES, strict=False):
            axes.plot(curves[name].x, curves[name].y, color=ink.value, label=name, marker="o", markersize=3)
        set_value_axis(axes, "y", "epsilon", *compute_limits(values, log=False, below=0))
        set_round_axis(axes, max(curves[name].x[-1] for name in drawn), first=1)
        place_legend_above(axes, columns=3, topmost_first=False)

    ends = "; ".join(f"{name} {curves[name].y[-1]:.2f}" for name in drawn)
    alternative = f"Epsilon by round and site: at the end {ends}." + (
        f" The least limit is {limit:g}." if limit else ""
    )
    return inline_svg(draw, name="epsilon-sites", size=(640, 260), alternative=alternative)
