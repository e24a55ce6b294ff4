"""The section on the sites: how the federated model does at each, and what each would have done alone."""

from collections.abc import Sequence

from fedglm.reports.formats import difference, metric_value, significant, whole
from fedglm.reports.html.markup import Column, Html, element, folded, isolated, join, section, table
from fedglm.reports.run.sections import figure, spread
from fedglm.reports.run.site_picture import DRAWN_SITES, NAMED_SITES, measured, ranked, site_results
from fedglm.run_folder.record import RunRecord, SiteRecord

_SHOWN_ROWS = 16
_LAST_ROWS = 8


def sites(run: RunRecord) -> Html:
    """The sites' picture beside their table; nothing where the run measured no site by itself."""
    if not run.sites:
        return Html()
    parts = figure(f"{run.metric.capitalize()} at each site", site_results(run), _note(run))
    grid = site_table(run)
    if len(run.sites) > _SHOWN_ROWS:
        last = table(f"The {_LAST_ROWS} sites where it does least well", *_columns_and_rows(run, least_well(run)))
        grid = join([last, folded(f"All {len(run.sites)} sites in figures", grid)])
    words = element("div", *(element("p", sentence) for sentence in _sentences(run)), grid)
    return section("sites", "How each site fares", element("div", parts, words, class_="beside"))


def _sentences(run: RunRecord) -> list[str]:
    found = [f"Federated model: {spread(run, [site.score for site in run.sites])}."]
    compared = [(site.score.metric, site.alone.metric) for site in run.sites if site.alone]
    pairs = [(here, there) for here, there in compared if here is not None and there is not None]
    if pairs:
        found.append(f"Trained alone: {spread(run, [site.alone for site in run.sites if site.alone])}.")
        sign = 1 if run.metric == "accuracy" else -1
        better = sum(sign * (here - there) > 0 for here, there in pairs)
        equal = sum(here == there for here, there in pairs)
        same = f", equal at {equal}" if equal else ""
        found.append(f"The federated model is better at {better} of {len(pairs)} sites{same}.")
    return found


def _note(run: RunRecord) -> str:
    many = len(measured(run))
    notes = []
    if many > NAMED_SITES:
        notes.append("One row a site, ranked from best to worst; the best, the middle and the last are named.")
    if many > DRAWN_SITES:
        notes.append(f"Of {many} sites, {DRAWN_SITES} are drawn, evenly by rank.")
    if run.metric == "accuracy" and any(site.held_out for site in run.sites):
        notes.append(
            "The pale band is the 95% interval (Wilson) that so few held-out rows leave, taken as independent: "
            "differences inside it may be chance."
        )
    return " ".join(notes)


def least_well(run: RunRecord) -> list[SiteRecord]:
    """The sites where the federated model does least well, the worst first."""
    return list(reversed(ranked(run)[-_LAST_ROWS:]))


def site_table(run: RunRecord) -> Html:
    """Each site's rows and results, exactly."""
    return table("Each site's data and results", *_columns_and_rows(run, run.sites))


def _columns_and_rows(run: RunRecord, shown: Sequence[SiteRecord]) -> tuple[list[Column], list[tuple[str, ...]]]:
    name = run.metric.capitalize()
    alone = any(site.alone for site in run.sites)
    titles = ["Units", "Train rows", "Held-out rows", "Loss", name]
    titles += [f"{name} alone", "Difference"] if alone else []
    columns = [Column("Site", figures=False), *map(Column, titles)]
    return columns, [_row(run, site, alone) for site in shown]


def _row(run: RunRecord, site: SiteRecord, alone: bool) -> tuple[str, ...]:
    own = (whole(site.units), whole(site.train), whole(site.held_out))
    here = (significant(site.score.loss), metric_value(run.metric, site.score.metric))
    there = site.alone.metric if site.alone else None
    beside = (metric_value(run.metric, there), difference(run.metric, site.score.metric, there)) if alone else ()
    return (isolated(site.name), *own, *here, *beside)
