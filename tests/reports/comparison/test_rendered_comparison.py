"""The page of a comparison with its pictures drawn."""

import xml.etree.ElementTree as ET
from pathlib import Path

from run_files import checked, run_files, write

from fedglm.reports.comparison.to_target import ComparisonRow
from fedglm.reports.comparison.write import write_comparison
from fedglm.reports.run.write import write_report


def test_its_pictures_are_drawn_and_the_same_each_time(tmp_path: Path) -> None:
    rows = [
        ComparisonRow(codec, tuple(
            write(tmp_path / codec / f"seed-{seed}", *run_files(rounds, codec=codec, seed=seed)) for seed in (7, 8)
        ))
        for codec, rounds in (("dense-fp32", 3), ("int8", 4))
    ]  # fmt: skip
    write_report(rows[0].folders[0])
    page = write_comparison(tmp_path, rows, tolerance=1.0)
    links = [target for target in checked(page)[1].targets if target.endswith(".html")]
    assert links == ["dense-fp32/seed-7/report.html"]  # the only one that is there
    pictures = list(ET.fromstring(page.read_text()).iter("svg"))  # noqa: S314
    for kind in ("Loss by bytes uploaded", "Loss by bytes sent, both ways", "Loss by round", "Bytes to the target"):
        drawn = [svg for svg in pictures if (svg.get("aria-label") or "").startswith(kind)]
        assert drawn, kind
        assert all(len(list(svg.iter("path"))) > 3 for svg in drawn), kind
    assert write_comparison(tmp_path, rows, tolerance=1.0).read_text() == page.read_text()
