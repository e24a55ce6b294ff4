"""The report pages: `RUN/report.html` for one run, and the page of a comparison.

A page is one file without a script and without a request to anywhere (its own Content-Security-Policy forbids both):
it can be mailed, archived and printed. The same files in the run folder give the same bytes.
"""

from collections.abc import Sequence
from pathlib import Path

from fedglm.core.files import write_atomically
from fedglm.reports.comparison import privacy, results
from fedglm.reports.comparison import sections as comparison_sections
from fedglm.reports.comparison.to_target import TOLERANCE, ComparisonRow, compare_runs
from fedglm.reports.html.markup import Html, element, join
from fedglm.reports.run import privacy, sites
from fedglm.reports.run import sections as comparison_sections
from fedglm.run_folder.record import RunRecord, read_run

_FILE = "report.html"
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
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
    return _written(run / _FILE, run_page(read_run(run)))


def write_comparison(folder: Path, runs: Sequence[ComparisonRow], *, tolerance: float = TOLERANCE) -> Path:
    """Writes `FOLDER/report.html`, the comparison of several runs of one federation, atomically.

    Args:
        folder: Where the page goes; it is made if it is not there. Runs inside it are linked to.
        runs: The codecs with their labels and run folders, one a seed; the baseline (dense, as a rule) first.
        tolerance: The factor on the baseline's final loss that still counts as equal.

    Raises:
        ReportError: A run is not finished, or its files are damaged.
        ValueError: No run was given, not every codec has as many, or the tolerance is below 1.
    """
    comparison = compare_runs(runs, tolerance=tolerance)
    body = join([
        _header(f"Comparison · {comparison.standings[0].run.scenario}", comparison_sections.headline(comparison),
                comparison_sections.lede(comparison)),
        element("main", comparison_sections.warning(comparison), comparison_sections.noise(comparison),
                privacy.price(comparison),
                results.to_target(comparison), comparison_sections.losses(comparison),
                results.whole_runs(comparison, folder)),
        _footer(comparison.standings[0].run),
    ])  # fmt: skip
    return _written(folder / _FILE, page(comparison_sections.headline(comparison), body))


def run_page(run: RunRecord) -> str:
    """A run's whole page."""
    sections = {
        "learning": report_sections.learning(run),
        "bytes": report_sections.traffic(run),
        "sites": sites.sites(run),
        "rejected": report_sections.rejected(run),
        "rounds": report_sections.every_round(run),
        "provenance": report_sections.provenance(run),
    }
    links = [element("a", _ANCHORS[name], href=f"#{name}") for name, content in sections.items() if content]
    seed = run.text("seed")
    above = " · ".join(["Federated run", run.scenario, *([f"seed {seed}"] if seed else [])])
    body = join([
        _header(above, report_sections.headline(run), report_sections.lede(run)),
        element("main", report_sections.key_figures(run), privacy.privacy(run),
                element("nav", *links, aria_label="Sections of this page"), *sections.values()),
        _footer(run),
    ])  # fmt: skip
    return page(f"{run.scenario}: {report_sections.headline(run)}", body)


def _header(above: str, title: str, lede: str) -> Html:
    return element(
        "header", element("p", above, class_="above"), element("h1", title), element("p", lede, class_="lede")
    )


def _footer(run: RunRecord) -> Html:
    versions = run.summary.get("versions")
    version = versions.get("fedglm") if isinstance(versions, dict) else None
    name = f"fedglm {version}" if version else "fedglm"
    return element(
        "footer", element("p", f"Written by {name} from the files of the run. This page asks nothing of the network.")
    )


def page(title: str, body: Html) -> str:
    """A whole page around `body`, which makes no request and runs no script."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", Html(style)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, element('body', body), lang='en')}\n"


def _written(path: Path, page: str) -> Path:
    write_atomically(path, page)
    return path
