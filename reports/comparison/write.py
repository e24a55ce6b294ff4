"""Report page of a comparison, `FOLDER/report.html`."""

from collections.abc import Sequence
from pathlib import Path

from fedglm.reports.comparison import privacy, results, sections
from fedglm.reports.comparison.to_target import TOLERANCE, ComparisonRow, compare_runs
from fedglm.reports.html.markup import element, join
from fedglm.reports.html.page import footer, header, write_page


def write_comparison(folder: Path, runs: Sequence[ComparisonRow], *, tolerance: float = TOLERANCE) -> Path:
    """Write `FOLDER/report.html`, the comparison of several runs of one federation, atomically.

    Args:
        folder: Folder for the page, created if missing. The reports of runs inside it are linked.
        runs: Codecs with their labels and run folders, one a seed; the baseline (usually dense) first.
        tolerance: Factor on the baseline's final loss that still counts as equal.

    Returns:
        Path of the page.

    Raises:
        ReportError: A run is not finished, or its files are damaged.
        ValueError: There is no run, the codecs have different numbers of runs, or the tolerance is below 1.
    """
    comparison = compare_runs(runs, tolerance=tolerance)
    body = join([
        header(f"Comparison · {comparison.codecs[0].run.scenario}", sections.headline(comparison),
                sections.summary(comparison)),
        element("main", sections.render_warning(comparison), sections.render_noise(comparison),
                privacy.render_privacy_cost(comparison),
                results.render_target_table(comparison), sections.render_losses(comparison),
                results.render_whole_runs(comparison, folder)),
        footer(comparison.codecs[0].run),
    ])  # fmt: skip
    return write_page(folder, sections.headline(comparison), body)
