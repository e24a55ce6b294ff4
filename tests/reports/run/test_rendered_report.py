"""The report pages with their pictures drawn: of runs small and large, diverged, with odd values and hostile names."""

import html
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from odd_runs import ODD_FIELDS, check_odd
from run_files import HOSTILE, read, run_files, site, write

from fedglm.reports.comparison.to_target import ComparisonRow
from fedglm.reports.comparison.write import write_comparison
from fedglm.reports.run.write import write_report


@pytest.mark.parametrize("metric", ["accuracy", pytest.param("perplexity", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("rounds", "sites"),
    [(0, 4), (1, 1), (200, 100), *(pytest.param(*s, marks=pytest.mark.slow) for s in [(2, 31), (60, 4)])],
)
def test_sizes_small_and_large(tmp_path: Path, metric: str, rounds: int, sites: int) -> None:
    path = write_report(write(tmp_path, *run_files(rounds, sites, metric)))
    text = read(path)
    assert path.stat().st_size < 600_000
    assert ("Perplexity 5.22 after" if metric == "perplexity" else "95.6% accuracy after") in text
    assert f"{rounds} round{'' if rounds == 1 else 's'} at {sites} site{'' if sites == 1 else 's'}" in text


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    lines, summary = run_files(
        scenario=HOSTILE,
        privacy=HOSTILE,
        codec=HOSTILE,
        versions={HOSTILE: HOSTILE},
        sites=[site(HOSTILE, 0), site("\ud800 lone", 1), site('" onload="x', 2), site("url(//x) @import 東京", 3)],
        data={"source": HOSTILE, "task": "</style><p>", "classes": [HOSTILE]},
    )
    page = write_report(write(tmp_path, lines, summary)).read_text(encoding="utf-8")
    root = ET.fromstring(page)  # noqa: S314
    assert root.find(".//script") is None
    assert all(not name.startswith("on") for node in root.iter() for name in node.attrib)
    assert "\u202e" not in page
    assert "\x00" not in page
    assert "<script>alert('x')</script>" in html.unescape(page)
    rows = [ComparisonRow(HOSTILE, (tmp_path,)), ComparisonRow('"><b>+<i>', (tmp_path,))]
    compared = write_comparison(tmp_path / "compare", rows).read_text(encoding="utf-8")
    assert ET.fromstring(compared).find(".//script") is None  # noqa: S314


def test_a_run_that_diverged_says_so(tmp_path: Path) -> None:
    lines, summary = run_files(loss=float("nan"), accuracy=float("inf"))
    lines[3]["loss"] = float("nan")
    text = read(write_report(write(tmp_path, lines, summary)))
    assert "No finite result after 6 rounds" in text
    assert "not finite from round 4 on" in text


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**ODD_FIELDS)
def test_odd_values_break_nothing(tmp_path: Path, changes: Any, line: Any, entry: Any) -> None:
    check_odd(tmp_path, changes, line, entry)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**ODD_FIELDS)
def test_many_odd_values_break_nothing(tmp_path: Path, changes: Any, line: Any, entry: Any) -> None:
    check_odd(tmp_path, changes, line, entry)


def test_the_same_files_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    first = write_report(write(tmp_path / "a", *run_files())).read_bytes()
    second = write_report(write(tmp_path / "elsewhere" / "b", *run_files())).read_bytes()
    assert first == second
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "report.html", "rounds.jsonl", "scenario.toml", "summary.json"
    ]  # fmt: skip
