"""The page of a comparison, `FOLDER/report.html`."""

from collections.abc import Sequence
from pathlib import Path

from fedglm.reports.comparison import privacy, results, sections
from fedglm.reports.comparison.to_target import TOLERANCE, ComparisonRow, compare_runs
from fedglm.reports.html.markup import element, join
from fedglm.reports.html.page import footer, header, write_page


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
        header(f"Comparison · {comparison.standings[0].run.scenario}", sections.headline(comparison),
                sections.summary_line(comparison)),
        element("main", sections.warning(comparison), sections.noise(comparison),
                privacy.price(comparison),
                results.to_target(comparison), sections.losses(comparison),
                results.whole_runs(comparison, folder)),
        footer(comparison.standings[0].run),
    ])  # fmt: skip
    return write_page(folder, sections.headline(comparison), body)
