"""The words of the report pages, from run folders that each test writes; `test_rendered_report` draws the pictures."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from odd_runs import ODD_FIELDS, check_odd
from run_files import checked, read, run_files, write

from fedglm.reports.formats import (
    describe_saving,
    format_bytes,
    format_difference,
    format_duration,
    format_number,
    format_percent,
)
from fedglm.reports.run.site_picture import wilson_interval
from fedglm.reports.run.write import write_report
from fedglm.run_folder.record import ReportError

pytestmark = pytest.mark.usefixtures("unrendered")


def test_every_figure_of_the_summary_is_on_the_page(tmp_path: Path) -> None:
    text = read(write_report(write(tmp_path, *run_files())))
    for figure in (
        *(
            "hospital",
            "4711",
            "93,120",
            "topk-sign",
            "0.05",
            "0.1372",
            "95.6%",
            "inline",
            "fp32",
            "41.2 s",
            "ab12" * 16,
        ),
        *("2,400", "4,800", "240,000", "7,200", "480,000", "1.00%", "2.00%", "1.50%", "67 times fewer"),
        *("0.6931", "49.2%", "0.04210", "97.1%", "0.2874", "88.4%", "breast-cancer", "malignant, benign"),
        *("glm-0.1m", "torch 2.11.0", "flwr 1.42.0", "fedglm simulate scenario.toml"),
        *("site-3", "104", "136", "93.8%", "81.2%", "+12.5 pt"),
    ):
        assert figure in text, figure


def test_a_run_without_a_guarantee_says_so_before_anything_else_but_its_figures(tmp_path: Path) -> None:
    page, _ = checked(write_report(write(tmp_path, *run_files())))
    assert "No privacy guarantee</h2><p>The updates were sent as they are.</p>" in page
    assert page.index("No privacy guarantee</h2>") < page.index("What was learned")


@pytest.mark.parametrize("epsilon", [None, math.inf, math.nan, -1.0])
def test_no_guarantee_is_never_shown_as_one(tmp_path: Path, epsilon: float | None) -> None:
    masked = [{"code": "masked-sums", "detail": "Masked sums: the server sees no single update."}]
    lines, summary = run_files(rounds=1, epsilon=epsilon, guarantees=masked)
    text = read(write_report(write(tmp_path, lines, summary)))
    assert "No differential privacy Masked sums" in text
    assert "Privacy guarantee" not in text


def test_a_private_run_states_its_guarantee(tmp_path: Path) -> None:
    stated = [{"code": "units", "detail": "for each patient."}]
    lines, summary = run_files(epsilon=3.25, delta=1e-5, guarantees=stated)
    for line in lines:
        line["epsilon"] = 3.25 * line["round"] / len(lines)
    text = read(write_report(write(tmp_path, lines, summary)))
    assert "Differential privacy: for each patient." in text
    assert "ε = 3.25" in text
    assert "1e-05" in text
    assert "No privacy guarantee" not in text
    assert "drawn afresh" in text


def test_rejected_and_missing_replies_are_shown(tmp_path: Path) -> None:
    lines, summary = run_files()
    assert "Rejected replies" not in read(write_report(write(tmp_path / "calm", lines, summary)))
    lines[2].update(nodes_accepted=1, nodes_rejected=2)
    text = read(write_report(write(tmp_path / "rough", lines, summary)))
    assert "Of 24 replies asked for, 2 were rejected and 1 never answered, in 1 round." in text
    assert "Absent" not in text


def test_sites_that_were_absent_are_no_rejections(tmp_path: Path) -> None:
    lines, summary = run_files()
    lines[2].update(nodes_accepted=2, absent=["b"], revoked=["c"])
    lines[3].update(nodes_accepted=3, absent=["b"])
    text = read(write_report(write(tmp_path / "run", lines, summary)))
    assert "Of 24 replies asked for, 3 are missing because sites were absent or revoked, in 2 rounds." in text
    assert "no reply rejected; 3 missing, sites were absent" in text
    assert "Absent" in text


def test_a_run_that_diverged_says_so_where_nulls_stand_for_nan(tmp_path: Path) -> None:
    lines, summary = run_files(loss=None, accuracy=None)
    for line in lines[3:]:
        line["loss"] = line["accuracy"] = None
    text = read(write_report(write(tmp_path, lines, summary)))
    assert "No finite result after 6 rounds" in text
    assert "not finite from round 4 on" in text


def test_only_what_is_there_is_shown(tmp_path: Path) -> None:
    lines = [{"round": 1, "loss": 0.5}, {"round": 2, "loss": None, "accuracy": 0.75}]
    text = read(write_report(write(tmp_path, lines, {"accuracy": 0.75})))
    assert "75.0% accuracy after 2 rounds" in text
    assert "No privacy guarantee" in text
    assert "None" not in text
    assert "nan" not in text


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(**ODD_FIELDS)
def test_odd_values_break_no_sentence(tmp_path: Path, changes: Any, line: Any, entry: Any) -> None:
    check_odd(tmp_path, changes, line, entry)


def test_a_folder_without_a_finished_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match=r"holds no summary\.json.*--resume"):
        write_report(tmp_path)
    write(tmp_path, *run_files())
    (tmp_path / "rounds.jsonl").write_text('{"round": 1}\n{"rou')
    with pytest.raises(ReportError, match="line 2, is not JSON"):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text("[]")
    with pytest.raises(ReportError, match="not a JSON object"):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_figures_are_written_for_people() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 999_499, 999_500, 12_345_678)] == [
        "0 B", "999 B", "1.00 kB", "999 kB", "1.00 MB", "12.3 MB"
    ]  # fmt: skip
    assert [describe_saving(r) for r in (0.02, 1.0, 1.5, None, 0.0)] == [
        "50.0 times fewer", "about as many", "1.50 times more", "\N{EN DASH}", "\N{EN DASH}"
    ]  # fmt: skip
    assert [format_percent(r) for r in (0.0251, 0.5, 1.0003)] == ["2.51%", "50.0%", "100%"]
    assert [format_number(v) for v in (0.14, 12.3456, 1e-7, math.inf)] == ["0.1400", "12.35", "1.000e-07", "not finite"]
    assert [format_duration(s) for s in (0.5, 41.2, 725, 12_000)] == ["0.5 s", "41 s", "12 min 5 s", "3 h 20 min"]
    assert format_difference("accuracy", 0.9, 0.95) == "\N{MINUS SIGN}5.0 pt"


def test_wilson_interval_against_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3 (score without continuity correction).
    low, high = wilson_interval(81 / 263, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(1.0, 20)[1] == 1.0
