"""Section on the sites: the federated model's result at each, beside a model trained there alone."""

from collections.abc import Sequence

from fedglm.reports.formats import format_difference, format_integer, format_metric, format_number
from fedglm.reports.html.markup import Column, Html, element, folded, isolated, join, section, table
from fedglm.reports.run.sections import describe_range, figure
from fedglm.reports.run.site_picture import DRAWN_SITES, NAMED_SITES, draw_sites, rank_sites, select_measured_sites
from fedglm.run_folder.record import RunRecord, SiteRecord, count

_SHOWN_ROWS = 16
_LAST_ROWS = 8


def render_sites(run: RunRecord) -> Html:
    """Render the sites' picture beside their table; nothing where the run has no results by site."""
    if not run.sites:
        return _render_participation(run)
    parts = figure(f"{run.metric.capitalize()} at each site", draw_sites(run), _write_note(run))
    grid = _render_site_table(run)
    if len(run.sites) > _SHOWN_ROWS:
        last = table(f"The {_LAST_ROWS} sites where it does least well", *_build_table(run, _select_worst_sites(run)))
        grid = join([last, folded(f"All {len(run.sites)} sites in figures", grid)])
    words = element("div", *(element("p", sentence) for sentence in _write_sentences(run)), grid)
    return section("sites", "How each site fares", element("div", parts, words, class_="beside"))


def _render_participation(run: RunRecord) -> Html:
    """Render what came of each site of a deployed run, by the server's own events; nothing where it is not recorded."""
    recorded = run.summary.get("participation")
    sites = [each for each in recorded if isinstance(each, dict)] if isinstance(recorded, list) else []
    if not sites:
        return Html()
    rows = [
        (isolated(str(each.get("name"))), format_integer(count(each.get("accepted"))),
         format_integer(count(each.get("rejected"))), isolated(str(each.get("last_fault") or "")))
        for each in sites
    ]  # fmt: skip
    columns = [
        Column("Site", figures=False),
        *map(Column, ("Updates accepted", "Updates rejected")),
        Column("Why the last one was rejected", figures=False),
    ]
    grid = table("Each site's updates, as the server saw them", columns, rows)
    note = "The sites' records, results and ledgers are with the sites, and not known here."
    return section("sites", "The sites", grid, element("p", note, class_="note"))


def _write_sentences(run: RunRecord) -> list[str]:
    sentences = [f"Federated model: {describe_range(run, [site.score for site in run.sites])}."]
    compared = [(site.score.metric, site.alone.metric) for site in run.sites if site.alone]
    pairs = [(here, there) for here, there in compared if here is not None and there is not None]
    if pairs:
        sentences.append(f"Trained alone: {describe_range(run, [site.alone for site in run.sites if site.alone])}.")
        sign = 1 if run.metric == "accuracy" else -1
        better = sum(sign * (here - there) > 0 for here, there in pairs)
        equal = sum(here == there for here, there in pairs)
        same = f", equal at {equal}" if equal else ""
        sentences.append(f"The federated model is better at {better} of {len(pairs)} sites{same}.")
    return sentences


def _write_note(run: RunRecord) -> str:
    many = len(select_measured_sites(run))
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


def _select_worst_sites(run: RunRecord) -> list[SiteRecord]:
    """Return the sites at which the federated model is worst, the worst first."""
    return list(reversed(rank_sites(run)[-_LAST_ROWS:]))


def _render_site_table(run: RunRecord) -> Html:
    """Render each site's number of rows and results."""
    return table("Each site's data and results", *_build_table(run, run.sites))


def _build_table(run: RunRecord, shown: Sequence[SiteRecord]) -> tuple[list[Column], list[tuple[str, ...]]]:
    name = run.metric.capitalize()
    alone = any(site.alone for site in run.sites)
    titles = ["Units", "Train rows", "Held-out rows", "Loss", name]
    titles += [f"{name} alone", "Difference"] if alone else []
    columns = [Column("Site", figures=False), *map(Column, titles)]
    return columns, [_build_row(run, site, alone) for site in shown]


def _build_row(run: RunRecord, site: SiteRecord, alone: bool) -> tuple[str, ...]:
    own = (format_integer(site.units), format_integer(site.train), format_integer(site.held_out))
    here = (format_number(site.score.loss), format_metric(run.metric, site.score.metric))
    there = site.alone.metric if site.alone else None
    beside = (
        (format_metric(run.metric, there), format_difference(run.metric, site.score.metric, there)) if alone else ()
    )
    return (isolated(site.name), *own, *here, *beside)
