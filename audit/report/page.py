"""The audit report: one page that a compliance officer can read, print and file, and the same as JSON.

Like all pages it holds no script and asks nothing of the network.
"""

import tomllib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from fedglm.audit.records.checks import Verdict, failed, missing, told
from fedglm.audit.report.facts import AuditFacts, SiteFacts
from fedglm.audit.report.flow import data_flow
from fedglm.audit.report.gate import Breach
from fedglm.audit.report.items import Item
from fedglm.audit.report.pictures import epsilon_by_site
from fedglm.audit.report.words import (
    NOT_PROTECTED,
    THREATS,
    charged_sentences,
    headline,
    summary_sentences,
)
from fedglm.core.files import write_atomically
from fedglm.reports.formats import counted
from fedglm.reports.html.markup import Column, Html, element, folded, isolated, section, table
from fedglm.reports.html.page import page
from fedglm.reports.run.sections import figure
from fedglm.run_folder.names import AUDIT
from fedglm.run_folder.record import ReportError
from fedglm.run_folder.rows import to_json

PAGE, JSON = "report.html", "report.json"
"""Files of a run's `audit/`."""

_MAX_ROWS: Final = 2000
_PROFILES: Final = Path(__file__).with_name("profiles")


@dataclass(frozen=True)
class Profile:
    """What items may serve as evidence for, in one law or guideline.

    Attributes:
        name: As on the command line.
        title: In full.
        short: In a word or two.
        source: Which text of it.
        caveat: What to know.
        references: By number of the item.
    """

    name: str
    title: str
    short: str
    source: str
    caveat: str
    references: dict[str, list[str]]


def profile_names() -> list[str]:
    """All that there are."""
    return sorted(path.stem for path in _PROFILES.glob("*.toml"))


def read_profile(name: str) -> Profile:
    """A profile by its name.

    Raises:
        ReportError: There is none of that name.
    """
    if name not in profile_names():
        raise ReportError(f"there is no profile {name!r}: take {', '.join(profile_names())}")
    return Profile(name=name, **tomllib.loads((_PROFILES / f"{name}.toml").read_text(encoding="utf-8")))


def write_audit_report(
    facts: AuditFacts, found: list[Item], profiles: list[Profile], broken: list[Breach] | None
) -> tuple[Path, Path]:
    """Write page and JSON into the run's `audit/`, atomically.

    Args:
        facts: Of the run.
        found: Its items.
        profiles: Whose references are shown.
        broken: Rules that are not met; None where no rules were asked.

    Returns:
        Paths of both.

    Raises:
        StorageError: They cannot be written.
    """
    folder = facts.folder / AUDIT
    write_atomically(folder / JSON, to_json(report_json(facts, found, profiles, broken), indent=1) + "\n")
    write_atomically(folder / PAGE, report_page(facts, found, profiles, broken))
    return folder / PAGE, folder / JSON


def report_json(
    facts: AuditFacts, found: list[Item], profiles: list[Profile], broken: list[Breach] | None
) -> dict[str, Any]:
    """The report as plain values; arguments as of `write_audit_report`."""
    sites = [
        {
            "name": site.name,
            "epsilon": site.epsilon,
            "limit": site.promise.limit if site.promise else None,
            "delta": site.promise.delta if site.promise else None,
            "data_sets": None if site.promises is None else [asdict(promise) for promise in site.promises],
            "key": site.log.keys[-1].hex,
            "entries": site.log.size,
            "refusals": dict(site.refusals),
            "releases": site.releases,
        }
        for site in facts.sites
    ]
    checks = [asdict(check) for check in facts.verification.checks]
    return {
        "summary": summary_sentences(facts),
        "verified": facts.verification.verdict is Verdict.WHOLE,
        "verdict": facts.verification.verdict,
        "items": [asdict(item) for item in found],
        "profiles": [asdict(profile) for profile in profiles],
        "rules": None if broken is None else {"met": not broken, "broken": [asdict(breach) for breach in broken]},
        "sites": sites,
        "checks": checks,
        "not_protected": NOT_PROTECTED,
        "threats": [list(threat) for threat in THREATS],
    }


def report_page(facts: AuditFacts, found: list[Item], profiles: list[Profile], broken: list[Breach] | None) -> str:
    """The whole page; arguments as of `write_audit_report`."""
    anchors = {"items": "The thirteen items", "epsilon": "Epsilon", "flow": "Data flow", "threats": "Threat model",
               "releases": "Releases", "records": "Records"}  # fmt: skip
    links = [element("a", words, href=f"#{name}") for name, words in anchors.items()]
    body = element(
        "main",
        _verdict(facts),
        _rules(broken) if broken is not None else "",
        element("nav", *links, aria_label="Sections of this page"),
        _items(found, profiles),
        _epsilon(facts),
        section("flow", "What leaves a site, and what does not", _flow(facts)),
        _threats(),
        _releases(facts),
        _records(facts),
    )
    sentences = [element("p", sentence, class_="lede") for sentence in summary_sentences(facts)]
    title = headline(facts)
    above = f"Audit report · {facts.result.scenario if facts.result else facts.folder.name}"
    header = element("header", element("p", above, class_="above"), element("h1", title), *sentences)
    note = (
        "It supports evidence for a risk analysis, and determines nothing of any law's. It asks nothing of the network."
    )
    return page(title, Html(f"{header}{body}{element('footer', element('p', note))}"))


def _verdict(facts: AuditFacts) -> Html:
    found = facts.verification
    odd = failed(found.checks) or missing(found.checks)
    words = f"Of chains, signatures, ledgers, plans and bytes: {told(found.checks)}."
    lines = [element("li", f"{check.subject}, {check.name}: {check.said}") for check in odd[:20]]
    heading, kind = _HEADINGS[found.verdict], "assurance" if found.verdict is Verdict.WHOLE else "warning"
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


def _rules(broken: list[Breach]) -> Html:
    heading = (
        f"{counted(len(broken), 'rule is', 'rules are')} not met" if broken else "All rules that were asked are met"
    )
    lines = [element("li", element("b", breach.rule), f": {breach.said}") for breach in broken]
    return element(
        "section",
        element("h2", heading, id="rules-title"),
        element("ul", *lines) if lines else "",
        id="rules",
        class_=f"notice {'warning' if broken else 'assurance'}",
        aria_labelledby="rules-title",
    )


def _items(found: list[Item], profiles: list[Profile]) -> Html:
    cards = [
        element(
            "article",
            element("h3", f"{item.number}. {item.title}", id=f"item-{item.number}"),
            element("span", item.status, class_=f"status {item.status.replace(' ', '-')}"),
            element("ul", *(element("li", line) for line in item.evidence), class_="evidence"),
            element("dl", *(_references(item, profile) for profile in profiles), class_="references"),
            aria_labelledby=f"item-{item.number}",
        )
        for item in found
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


def _references(item: Item, profile: Profile) -> Html:
    said = "; ".join(profile.references[str(item.number)])
    return element("div", element("dt", profile.short), element("dd", said))


def _epsilon(facts: AuditFacts) -> Html:
    picture = figure("Epsilon so far, by round", epsilon_by_site(facts), "Told by each site's log as it released.")
    columns = [Column("Site", figures=False), Column("Data set", figures=False),
               *map(Column, ("Releases", "Epsilon", "Limit", "Delta", "Refusals"))]  # fmt: skip
    rows = [row for site in facts.sites for row in _spent(site)]
    note = "Epsilon is for each unit of a site, for all runs that ever used the data set, by the site's own ledger."
    return section(
        "epsilon", "Epsilon, by site", picture, table("Sites", columns, rows), element("p", note, class_="note")
    )


def _spent(site: SiteFacts) -> Iterator[tuple[str, ...]]:
    """A row for each data set; what is the site's own stands in the first."""
    name, releases, refusals = isolated(site.name), f"{len(site.left):,}", f"{sum(site.refusals.values()):,}"
    if not site.promises:
        yield name, "", releases, _figure(site.epsilon), _set(None), _set(None), refusals
    for promise in site.promises or []:
        figures = _figure(promise.epsilon), _set(promise.limit), _set(promise.delta)
        yield name, isolated(promise.data_set), releases, *figures, refusals
        releases = refusals = ""


def _figure(value: float | None) -> str:
    return "none holds" if value is None else f"{value:.3f}"


def _set(value: float | None) -> str:
    return "none set" if value is None else f"{value:g}"


def _flow(facts: AuditFacts) -> Html:
    noised = facts.plan is not None and facts.plan.spec.noise.mechanism is not None
    measured = any(entry["purpose"] == "metrics" for site in facts.sites for entry in site.left)
    sites, together = len(facts.sites) + len(facts.missing), facts.is_simulation is True
    return figure("Data flow", data_flow(sites, noised=noised, measured=measured, together=together))


def _threats() -> Html:
    columns = [
        Column("Who", figures=False),
        Column("What they see", figures=False),
        Column("What holds", figures=False),
    ]
    grid = table("Threat model", columns, THREATS)
    lines = element("ul", *(element("li", line) for line in NOT_PROTECTED))
    return section("threats", "Threat model, and what is not protected", grid, element("h3", "Not protected"), lines)


def _releases(facts: AuditFacts) -> Html:
    columns = [Column("Site", figures=False), Column("Entry"), Column("Round"), Column("What", figures=False),
               Column("Bytes"), Column("Not zero"), Column("Codec", figures=False), Column("Clip"), Column("Sigma"),
               Column("Epsilon so far"), Column("SHA-256", figures=False)]  # fmt: skip
    rows = [_release(site, entry) for site in facts.sites for entry in site.releases]
    heading = " ".join([f"Releases, {facts.left:,} in all.", *charged_sentences(facts)])
    grid = table(heading.removesuffix("."), columns, rows[:_MAX_ROWS], class_="releases")
    more = f"The first {_MAX_ROWS:,} are shown; {JSON} beside this page holds all." if len(rows) > _MAX_ROWS else ""
    return section("releases", "Every release", grid, element("p", more, class_="note") if more else "")


def _release(site: SiteFacts, entry: dict[str, Any]) -> list[str]:
    noise = entry["mechanism"] or {}
    return [
        isolated(site.name), str(entry["number"]), str(entry["round"]),
        entry["purpose"] + (", charged for" if entry["kind"] == "charged" else ""),
        f"{entry['bytes']:,}" if "bytes" in entry else "",
        "" if entry.get("non_zeros") is None else f"{entry['non_zeros']:,}", entry.get("codec") or "",
        f"{noise['clipping_norm']:g}" if noise else "none", f"{noise['noise_multiplier']:.3g}" if noise else "none",
        _figure(entry["epsilon"]), element("code", entry["release"][:16]),
    ]  # fmt: skip


def _records(facts: AuditFacts) -> Html:
    words = {True: "held", False: "not held", None: "open"}
    columns = [Column(name, figures=False) for name in ("Record", "Check", "Status", "Found")]
    rows = [
        (isolated(check.subject), check.name,
         element("span", words[check.held], class_=f"status {words[check.held].replace(' ', '-')}"), check.said)
        for check in facts.verification.checks
    ]  # fmt: skip
    grid = table("Checks of the records", columns, rows)
    heads = table(
        "Logs as they stand",
        [Column("Log", figures=False), Column("Entries"), Column("Root", figures=False), Column("Key", figures=False)],
        [
            (isolated(log.subject), f"{log.size:,}", element("code", log.root(log.size)),
             element("code", log.keys[-1].fingerprint()))
            for log in facts.verification.logs
        ],
    )  # fmt: skip
    how = element("p", "Anybody can repeat them: ", element("code", "fedglm audit verify RUN"), class_="note")
    return section("records", "Can this record be trusted?", heads, folded("Every check", grid), how)


def require_run(folder: Path) -> None:
    """Raise ReportError where there is no run."""
    if not (folder / AUDIT).is_dir():
        raise ReportError(
            f"{folder} holds no run with a log: name a folder that fedglm simulate or fedglm run has made"
        )
