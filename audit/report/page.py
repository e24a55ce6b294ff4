"""Renders the audit report: one page that a compliance officer can read, print and file, and the same content as JSON.

Like all pages it contains no script and requests nothing from the network.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fedglm.audit.records.checks import Verdict, describe_checks, select_failed, select_missing
from fedglm.audit.report.facts import AuditFacts, SiteFacts
from fedglm.audit.report.flow import draw_data_flow
from fedglm.audit.report.gate import Breach
from fedglm.audit.report.items import Item
from fedglm.audit.report.pictures import draw_epsilon_by_site
from fedglm.audit.report.sentences import (
    NOT_PROTECTED,
    THREATS,
    describe_charged,
    write_headline,
    write_summary,
)
from fedglm.core.files import write_atomically
from fedglm.reports.formats import pluralize
from fedglm.reports.html.markup import Column, Html, element, folded, isolated, section, table
from fedglm.reports.html.page import page
from fedglm.reports.run.sections import figure
from fedglm.run_folder.names import AUDIT
from fedglm.run_folder.record import ReportError
from fedglm.run_folder.rows import to_json

PAGE, JSON = "report.html", "report.json"
"""Names of the files in a run's `audit/`."""

_MAX_ROWS: Final = 2000
_PROFILES: Final = Path(__file__).with_name("profiles")


@dataclass(frozen=True)
class Profile:
    """The paragraphs of one law or guideline that items may serve as evidence for.

    Attributes:
        name: Name on the command line.
        title: Full title.
        short: Title in a word or two.
        source: Edition of the text.
        caveat: Limitation that readers must know.
        references: Paragraphs, by the number of the item.
    """

    name: str
    title: str
    short: str
    source: str
    caveat: str
    references: dict[str, list[str]]


def list_profiles() -> list[str]:
    """Return the names of all profiles."""
    return sorted(path.stem for path in _PROFILES.glob("*.toml"))


def read_profile(name: str) -> Profile:
    """Read a profile by its name.

    Raises:
        ReportError: There is no profile of that name.
    """
    if name not in list_profiles():
        raise ReportError(f"there is no profile {name!r}: take {', '.join(list_profiles())}")
    return Profile(name=name, **tomllib.loads((_PROFILES / f"{name}.toml").read_text(encoding="utf-8")))


def write_audit_report(
    facts: AuditFacts, items: list[Item], profiles: list[Profile], breaches: list[Breach] | None
) -> tuple[Path, Path]:
    """Write page and JSON into the run's `audit/`, each atomically.

    Args:
        facts: Facts of the run.
        items: Items of its report.
        profiles: Profiles whose references are shown.
        breaches: Rules that are not met; None if no rules were given.

    Returns:
        Paths of the page and of the JSON.

    Raises:
        StorageError: They cannot be written.
    """
    folder = facts.folder / AUDIT
    write_atomically(folder / JSON, to_json(build_report_json(facts, items, profiles, breaches), indent=1) + "\n")
    write_atomically(folder / PAGE, render_report_page(facts, items, profiles, breaches))
    return folder / PAGE, folder / JSON


def build_report_json(
    facts: AuditFacts, items: list[Item], profiles: list[Profile], breaches: list[Breach] | None
) -> dict[str, Any]:
    """Return the report as plain values; arguments as for `write_audit_report`."""
    sites = [
        {
            "name": site.name,
            "epsilon": site.epsilon,
            "limit": site.weakest_budget.limit if site.weakest_budget else None,
            "delta": site.weakest_budget.delta if site.weakest_budget else None,
            "data_sets": None if site.budgets is None else [asdict(budget) for budget in site.budgets],
            "key": site.log.keys[-1].hex,
            "entries": site.log.size,
            "refusals": dict(site.refusals),
            "releases": site.releases,
        }
        for site in facts.sites
    ]
    checks = [
        # The keys "held" and "said" are those of published reports.
        {"subject": c.subject, "name": c.name, "held": c.passed, "said": c.detail, "missing": c.missing}
        for c in facts.verification.checks
    ]
    rules = None
    if breaches is not None:
        broken = [{"rule": breach.rule, "said": breach.detail} for breach in breaches]
        rules = {"met": not breaches, "broken": broken}
    return {
        "summary": write_summary(facts),
        "verified": facts.verification.verdict is Verdict.WHOLE,
        "verdict": facts.verification.verdict,
        "items": [asdict(item) for item in items],
        "profiles": [asdict(profile) for profile in profiles],
        "rules": rules,
        "sites": sites,
        "checks": checks,
        "not_protected": NOT_PROTECTED,
        "threats": [list(threat) for threat in THREATS],
    }


def render_report_page(
    facts: AuditFacts, items: list[Item], profiles: list[Profile], breaches: list[Breach] | None
) -> str:
    """Render the whole page as HTML; arguments as for `write_audit_report`."""
    anchors = {"items": "The thirteen items", "epsilon": "Epsilon", "flow": "Data flow", "threats": "Threat model",
               "releases": "Releases", "records": "Records"}  # fmt: skip
    links = [element("a", words, href=f"#{name}") for name, words in anchors.items()]
    body = element(
        "main",
        _render_verdict(facts),
        _render_rules(breaches) if breaches is not None else "",
        element("nav", *links, aria_label="Sections of this page"),
        _render_items(items, profiles),
        _render_epsilon(facts),
        section("flow", "What leaves a site, and what does not", _render_flow(facts)),
        _render_threats(),
        _render_releases(facts),
        _render_records(facts),
    )
    sentences = [element("p", sentence, class_="lede") for sentence in write_summary(facts)]
    title = write_headline(facts)
    above = f"Audit report · {facts.result.scenario if facts.result else facts.folder.name}"
    header = element("header", element("p", above, class_="above"), element("h1", title), *sentences)
    note = (
        "It supports evidence for a risk analysis, and determines nothing of any law's. It asks nothing of the network."
    )
    return page(title, Html(f"{header}{body}{element('footer', element('p', note))}"))


def _render_verdict(facts: AuditFacts) -> Html:
    verification = facts.verification
    not_passed = select_failed(verification.checks) or select_missing(verification.checks)
    words = f"Of chains, signatures, ledgers, plans and bytes: {describe_checks(verification.checks)}."
    lines = [element("li", f"{check.subject}, {check.name}: {check.detail}") for check in not_passed[:20]]
    heading, kind = _HEADINGS[verification.verdict], "assurance" if verification.verdict is Verdict.WHOLE else "warning"
    return element(
        "section",
        element("h2", heading, id="verdict-title"),
        element("p", words),
        element("ul", *lines) if lines else "",
        id="verdict",
        class_=f"notice {kind}",
        aria_labelledby="verdict-title",
    )


_HEADINGS: Final = {
    Verdict.WHOLE: "The records are whole",
    Verdict.ALONE: "The server's records alone are here",
    Verdict.OPEN: "The records are not whole: something is missing",
    Verdict.WRONG: "The records are not whole",
}


def _render_rules(breaches: list[Breach]) -> Html:
    heading = (
        f"{pluralize(len(breaches), 'rule is', 'rules are')} not met"
        if breaches
        else "All rules that were asked are met"
    )
    lines = [element("li", element("b", breach.rule), f": {breach.detail}") for breach in breaches]
    return element(
        "section",
        element("h2", heading, id="rules-title"),
        element("ul", *lines) if lines else "",
        id="rules",
        class_=f"notice {'warning' if breaches else 'assurance'}",
        aria_labelledby="rules-title",
    )


def _render_items(items: list[Item], profiles: list[Profile]) -> Html:
    cards = [
        element(
            "article",
            element("h3", f"{item.number}. {item.title}", id=f"item-{item.number}"),
            element("span", item.status, class_=f"status {item.status.replace(' ', '-')}"),
            element("ul", *(element("li", line) for line in item.evidence), class_="evidence"),
            element("dl", *(_render_references(item, profile) for profile in profiles), class_="references"),
            aria_labelledby=f"item-{item.number}",
        )
        for item in items
    ]
    notes = [
        element("p", element("b", profile.title), f" ({profile.source}). {profile.caveat.strip()}", class_="note")
        for profile in profiles
    ]
    summary_line = element(
        "p",
        "Held: the records show it. Not held: they do not, or show the contrary. Under each item: what it may serve as "
        "evidence for.",
        class_="note",
    )
    return section("items", "The thirteen items", summary_line, element("div", *cards, class_="items"), *notes)


def _render_references(item: Item, profile: Profile) -> Html:
    references = "; ".join(profile.references[str(item.number)])
    return element("div", element("dt", profile.short), element("dd", references))


def _render_epsilon(facts: AuditFacts) -> Html:
    picture = figure("Epsilon so far, by round", draw_epsilon_by_site(facts), "Told by each site's log as it released.")
    columns = [Column("Site", figures=False), Column("Data set", figures=False),
               *map(Column, ("Releases", "Epsilon", "Limit", "Delta", "Refusals"))]  # fmt: skip
    rows = [row for site in facts.sites for row in _list_budget_rows(site)]
    note = "Epsilon is for each unit of a site, for all runs that ever used the data set, by the site's own ledger."
    return section(
        "epsilon", "Epsilon, by site", picture, table("Sites", columns, rows), element("p", note, class_="note")
    )


def _list_budget_rows(site: SiteFacts) -> Iterator[tuple[str, ...]]:
    """Yield a table row for each data set; what belongs to the site is in its first row only."""
    name, releases, refusals = isolated(site.name), f"{len(site.sent_releases):,}", f"{sum(site.refusals.values()):,}"
    if not site.budgets:
        yield name, "", releases, _format_epsilon(site.epsilon), _format_limit(None), _format_limit(None), refusals
    for budget in site.budgets or []:
        figures = _format_epsilon(budget.epsilon), _format_limit(budget.limit), _format_limit(budget.delta)
        yield name, isolated(budget.data_set), releases, *figures, refusals
        releases = refusals = ""


def _format_epsilon(value: float | None) -> str:
    return "none holds" if value is None else f"{value:.3f}"


def _format_limit(value: float | None) -> str:
    return "none set" if value is None else f"{value:g}"


def _render_flow(facts: AuditFacts) -> Html:
    noised = facts.plan is not None and facts.plan.spec.noise.mechanism is not None
    measured = any(entry["purpose"] == "metrics" for site in facts.sites for entry in site.sent_releases)
    sites, together = len(facts.sites) + len(facts.missing_sites), facts.is_simulation is True
    return figure("Data flow", draw_data_flow(sites, noised=noised, measured=measured, together=together))


def _render_threats() -> Html:
    columns = [
        Column("Who", figures=False),
        Column("What they see", figures=False),
        Column("What holds", figures=False),
    ]
    grid = table("Threat model", columns, THREATS)
    lines = element("ul", *(element("li", line) for line in NOT_PROTECTED))
    return section("threats", "Threat model, and what is not protected", grid, element("h3", "Not protected"), lines)


def _render_releases(facts: AuditFacts) -> Html:
    columns = [Column("Site", figures=False), Column("Entry"), Column("Round"), Column("What", figures=False),
               Column("Bytes"), Column("Not zero"), Column("Codec", figures=False), Column("Clip"), Column("Sigma"),
               Column("Epsilon so far"), Column("SHA-256", figures=False)]  # fmt: skip
    rows = [_make_release_row(site, entry) for site in facts.sites for entry in site.releases]
    heading = " ".join([f"Releases, {facts.sent_count:,} in all.", *describe_charged(facts)])
    grid = table(heading.removesuffix("."), columns, rows[:_MAX_ROWS], class_="releases")
    more = f"The first {_MAX_ROWS:,} are shown; {JSON} beside this page holds all." if len(rows) > _MAX_ROWS else ""
    return section("releases", "Every release", grid, element("p", more, class_="note") if more else "")


def _make_release_row(site: SiteFacts, entry: dict[str, Any]) -> list[str]:
    noise = entry["mechanism"] or {}
    return [
        isolated(site.name), str(entry["number"]), str(entry["round"]),
        entry["purpose"] + (", charged for" if entry["kind"] == "charged" else ""),
        f"{entry['bytes']:,}" if "bytes" in entry else "",
        "" if entry.get("non_zeros") is None else f"{entry['non_zeros']:,}", entry.get("codec") or "",
        f"{noise['clipping_norm']:g}" if noise else "none", f"{noise['noise_multiplier']:.3g}" if noise else "none",
        _format_epsilon(entry["epsilon"]), element("code", entry["release"][:16]),
    ]  # fmt: skip


def _render_records(facts: AuditFacts) -> Html:
    words = {True: "held", False: "not held", None: "open"}
    columns = [Column(name, figures=False) for name in ("Record", "Check", "Status", "Found")]
    rows = [
        (isolated(check.subject), check.name,
         element("span", words[check.passed], class_=f"status {words[check.passed].replace(' ', '-')}"), check.detail)
        for check in facts.verification.checks
    ]  # fmt: skip
    grid = table("Checks of the records", columns, rows)
    heads = table(
        "Logs as they stand",
        [Column("Log", figures=False), Column("Entries"), Column("Root", figures=False), Column("Key", figures=False)],
        [
            (isolated(log.subject), f"{log.size:,}", element("code", log.compute_root(log.size)),
             element("code", log.keys[-1].fingerprint()))
            for log in facts.verification.logs
        ],
    )  # fmt: skip
    how = element("p", "Anybody can repeat them: ", element("code", "fedglm audit verify RUN"), class_="note")
    return section("records", "Can this record be trusted?", heads, folded("Every check", grid), how)


def check_run(folder: Path) -> None:
    """Raise ReportError if a folder holds no run."""
    if not (folder / AUDIT).is_dir():
        raise ReportError(
            f"{folder} holds no run with a log: name a folder that fedglm simulate or fedglm run has made"
        )
