"""The page of a run, `RUN/report.html`."""

from pathlib import Path

from fedglm.reports.html.markup import Html, element, join
from fedglm.reports.html.page import footer, header, write_page
from fedglm.reports.run import privacy, sections, sites
from fedglm.run_folder.record import RunRecord, read_run

_ANCHORS = {
    "learning": "Learning",
    "bytes": "Bytes",
    "sites": "Sites",
    "rejected": "Rejected replies",
    "rounds": "Rounds",
    "provenance": "What was run",
}


def write_report(run: Path) -> Path:
    """Writes `RUN/report.html` from the run's `summary.json`, `rounds.jsonl` and `scenario.toml`, atomically.

    Raises:
        ReportError: The run is not finished, or its files are damaged.
        StorageError: The page cannot be written.
    """
    record = read_run(run)
    return write_page(run, _title(record), _body(record))


def _title(run: RunRecord) -> str:
    return f"{run.scenario}: {sections.headline(run)}"


def _body(run: RunRecord) -> Html:
    parts = {
        "learning": sections.learning(run),
        "bytes": sections.traffic(run),
        "sites": sites.sites(run),
        "rejected": sections.rejected(run),
        "rounds": sections.every_round(run),
        "provenance": sections.provenance(run),
    }
    links = [element("a", _ANCHORS[name], href=f"#{name}") for name, content in parts.items() if content]
    seed = run.text("seed")
    above = " · ".join(["Federated run", run.scenario, *([f"seed {seed}"] if seed else [])])
    return join([
        header(above, sections.headline(run), sections.summary_line(run)),
        element("main", sections.key_figures(run), privacy.privacy(run),
                element("nav", *links, aria_label="Sections of this page"), *parts.values()),
        footer(run),
    ])  # fmt: skip
