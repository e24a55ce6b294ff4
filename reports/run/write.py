"""Report page of a run, `RUN/report.html`."""

from pathlib import Path

from fedglm.reports.html.markup import Html, element, join
from fedglm.reports.html.page import footer, header, write_page
from fedglm.reports.run import headline, light, privacy, provenance, sections, sites
from fedglm.run_folder.record import RunRecord, read_run

_ANCHORS = {
    "learning": "Learning",
    "bytes": "Bytes",
    "sites": "Sites",
    "light": "Light release",
    "rejected": "Rejected replies",
    "rounds": "Rounds",
    "provenance": "What was run",
}


def write_report(run: Path) -> Path:
    """Write `RUN/report.html` from the run's `summary.json`, `rounds.jsonl` and `scenario.toml`, atomically.

    Args:
        run: Folder of the run.

    Returns:
        Path of the page.

    Raises:
        ReportError: The run is not finished, or its files are damaged.
        StorageError: The page cannot be written.
    """
    record = read_run(run)
    return write_page(run, _write_title(record), _render_body(record))


def _write_title(run: RunRecord) -> str:
    return f"{run.scenario}: {headline.write_headline(run)}"


def _render_body(run: RunRecord) -> Html:
    parts = {
        "learning": sections.render_learning(run),
        "bytes": sections.render_traffic(run),
        "sites": sites.render_sites(run),
        "light": light.render_light(run),
        "rejected": sections.render_rejections(run),
        "rounds": sections.render_rounds(run),
        "provenance": provenance.render_provenance(run),
    }
    links = [element("a", _ANCHORS[name], href=f"#{name}") for name, content in parts.items() if content]
    seed = run.text("seed")
    above = " · ".join(["Federated run", run.scenario, *([f"seed {seed}"] if seed else [])])
    return join([
        header(above, headline.write_headline(run), headline.write_summary(run)),
        element("main", headline.render_key_figures(run), privacy.render_privacy(run),
                element("nav", *links, aria_label="Sections of this page"), *parts.values()),
        footer(run),
    ])  # fmt: skip
