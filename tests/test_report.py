"""The report pages, from run folders that each test writes."""

import html
import json
import math
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedglm.simulations.report import write_comparison, write_report
from fedglm.simulations.run_record import ReportError, RoundRecord, Score, Traffic, read_run
from fedglm.simulations.site_picture import wilson_interval
from fedglm.simulations.to_target import (
    ComparisonRow,
    compare_runs,
    first_round_at_most,
    reach,
    target_loss,
    traffic_until,
)
from fedglm.simulations.wording import byte_count, difference, duration, fewer, share, significant

HOSTILE = "<script>alert('x')</script> \"q\" & $a^$ \u202eevil \x00"
PRIVACY = "No privacy guarantee: the updates were sent as they are."


def site(name: str, index: int, *, alone: bool = True) -> dict[str, Any]:
    other = {"loss": 0.3, "accuracy": 0.8125, "perplexity": 1.35} if alone else None
    return {
        "name": name,
        "train": 101 + index,
        "held_out": 32,
        "units": 133 + index,
        "loss": 0.2,
        "accuracy": 0.9375,
        "perplexity": 1.22,
        "alone": other,
    }


def run_files(rounds: int = 6, nodes: int = 4, metric: str = "accuracy", **changes: Any) -> tuple[list[Any], Any]:
    """Lines and summary of a run: 100-byte messages up, 200 down, 10,000 dense each way, the loss halved each round."""
    lines = [
        {
            "round": number,
            "loss": 2.0**-number,
            metric: 0.9 if metric == "accuracy" else math.exp(2.0**-number),
            "uplink_bytes": 100 * nodes,
            "downlink_bytes": 200 * nodes,
            "dense_uplink_bytes": 10_000 * nodes,
            "dense_downlink_bytes": 10_000 * nodes,
            "nodes_sampled": nodes,
            "nodes_accepted": nodes,
            "nodes_rejected": 0,
            "epsilon": None,
            "wall_s": 0.51,
            "virtual_s": None,
        }
        for number in range(1, rounds + 1)
    ]
    total = rounds * nodes
    baseline = {"loss": 0.0421, "accuracy": 0.9713, "perplexity": 1.043}
    summary = {
        "scenario": "hospital",
        "seed": 4711,
        "rounds": rounds,
        "parameters": 93120,
        "codec": "topk-sign",
        "density": 0.05,
        "loss": 0.1372,
        metric: 0.9561 if metric == "accuracy" else 5.217,
        "metric": metric,
        "uplink_bytes": 100 * total,
        "downlink_bytes": 200 * total,
        "dense_uplink_bytes": 10_000 * total,
        "dense_downlink_bytes": 10_000 * total,
        "uplink_ratio": 0.01,
        "downlink_ratio": 0.02,
        "roundtrip_ratio": 0.015,
        "epsilon": None,
        "delta": None,
        "privacy": PRIVACY,
        "model_sha256": "ab12" * 16,
        "wall_s": 41.2,
        "engine": "inline",
        "precision": "fp32",
        "nodes": nodes,
        "initial": {"loss": 0.6931, "accuracy": 0.4917, "perplexity": 257.3},
        "data": {"source": "breast-cancer", "task": "tabular-classification", "classes": ["malignant", "benign"]},
        "sites": [site(f"site-{index}", index) for index in range(nodes)],
        "baselines": {"pooled": baseline, "alone": {"loss": 0.2874, "accuracy": 0.8839, "perplexity": 1.333}},
        "versions": {"python": "3.11.7", "torch": "2.11.0", "flwr": "1.42.0", "fedglm": "0.1.0"},
    }
    summary.update(changes)
    return lines, summary


def write(folder: Path, lines: list[Any], summary: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    (folder / "scenario.toml").write_text('[model]\npreset = "glm-0.1m"\n[data]\nnote = "<b>"\n', encoding="utf-8")
    return folder


class Texts(HTMLParser):
    """Collects what a reader sees, and where the page points."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "srcset", "action", "data", "poster"}:
                self.targets.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def checked(path: Path) -> tuple[str, Texts]:
    """The page, after everything that holds for every page was seen to hold."""
    page = path.read_text(encoding="utf-8")
    root = ET.fromstring(page)  # noqa: S314 - our own page; stricter than a browser
    parsed = Texts()
    parsed.feed(page)
    assert root.tag == "html"
    assert root.get("lang") == "en"
    assert "script" not in parsed.tags
    assert all(re.fullmatch(r"#[\w-]+|data:,|[\w./%-]+/report\.html", target) for target in parsed.targets)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)'\"]*)", page))
    assert "@import" not in page
    assert not re.search(r"https?:|//[a-z]", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {target[1:] for target in parsed.targets if target.startswith("#")} <= set(parsed.ids)
    assert parsed.tags.count("h1") == parsed.tags.count("main") == 1
    for picture in root.iter("svg"):
        assert picture.get("role") == "img"
        assert len(picture.get("aria-label") or "") > 20
        assert "#0a00" not in ET.tostring(picture, encoding="unicode")
    for grid in root.iter("table"):
        assert grid.find("caption") is not None
        assert all(cell.get("scope") in {"col", "row"} for cell in grid.iter("th"))
    return page, parsed


def read(path: Path) -> str:
    return " ".join(" ".join(checked(path)[1].texts).split())


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
    lines, summary = run_files(rounds=1, epsilon=epsilon, privacy="Masked sums: the server sees no single update.")
    text = read(write_report(write(tmp_path, lines, summary)))
    assert "No differential privacy Masked sums" in text
    assert "Privacy guarantee" not in text


def test_a_private_run_states_its_guarantee(tmp_path: Path) -> None:
    lines, summary = run_files(epsilon=3.25, delta=1e-5, privacy="Differential privacy for each patient.")
    for line in lines:
        line["epsilon"] = 3.25 * line["round"] / len(lines)
    text = read(write_report(write(tmp_path, lines, summary)))
    assert "Differential privacy for each patient." in text
    assert "ε = 3.25" in text
    assert "1e-05" in text
    assert "No privacy guarantee" not in text
    assert "drawn afresh" in text


@pytest.mark.parametrize("metric", ["accuracy", "perplexity"])
@pytest.mark.parametrize(("rounds", "sites"), [(0, 4), (1, 1), (2, 31), (60, 4), (200, 100)])
def test_sizes_small_and_large(tmp_path: Path, metric: str, rounds: int, sites: int) -> None:
    path = write_report(write(tmp_path, *run_files(rounds, sites, metric)))
    text = read(path)
    assert path.stat().st_size < 600_000
    assert ("Perplexity 5.22 after" if metric == "perplexity" else "95.6% accuracy after") in text
    assert f"{rounds} round{'' if rounds == 1 else 's'} at {sites} site{'' if sites == 1 else 's'}" in text


def test_rejected_and_missing_replies_are_shown(tmp_path: Path) -> None:
    lines, summary = run_files()
    assert "Rejected replies" not in read(write_report(write(tmp_path / "calm", lines, summary)))
    lines[2].update(nodes_accepted=1, nodes_rejected=2)
    text = read(write_report(write(tmp_path / "rough", lines, summary)))
    assert "Of 24 replies asked for, 2 were rejected and 1 never answered, in 1 round." in text


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
    rows = [ComparisonRow(HOSTILE, tmp_path), ComparisonRow('"><b>', tmp_path)]
    compared = write_comparison(tmp_path / "compare", rows).read_text(encoding="utf-8")
    assert ET.fromstring(compared).find(".//script") is None  # noqa: S314


def test_a_run_that_diverged_says_so(tmp_path: Path) -> None:
    lines, summary = run_files(loss=float("nan"), accuracy=float("inf"))
    lines[3]["loss"] = float("nan")
    text = read(write_report(write(tmp_path, lines, summary)))
    assert "No finite result after 6 rounds" in text
    assert "not finite from round 4 on" in text


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


ODD = st.sampled_from([None, math.nan, math.inf, -1, 0, 1e300, 10**400, True, "", "x", [], [1], {}, {"loss": "y"}])
FIELDS = sorted(run_files()[1])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=6), line=st.dictionaries(
    st.sampled_from(sorted(run_files()[0][0])), ODD, max_size=4), entry=st.dictionaries(
    st.sampled_from(sorted(site("a", 0))), ODD, max_size=3))  # fmt: skip
def test_odd_values_break_nothing(tmp_path: Path, changes: Any, line: Any, entry: Any) -> None:
    lines, summary = run_files(3, 2)
    lines[1].update(line)
    summary["sites"][0].update(entry)
    checked(write_report(write(tmp_path, lines, summary | changes)))


def test_the_same_files_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    first = write_report(write(tmp_path / "a", *run_files())).read_bytes()
    second = write_report(write(tmp_path / "elsewhere" / "b", *run_files())).read_bytes()
    assert first == second
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "report.html", "rounds.jsonl", "scenario.toml", "summary.json"
    ]  # fmt: skip


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


def rounds_of(*losses: float | None) -> list[RoundRecord]:
    return [
        RoundRecord(round=number, score=Score(loss=loss), traffic=Traffic(10, 20, 1000, 2000))
        for number, loss in enumerate(losses, start=1)
    ]


def test_the_first_round_at_the_target_and_the_bytes_until_then() -> None:
    rounds = rounds_of(0.9, math.nan, None, 0.5, 0.6, 0.4)
    assert first_round_at_most(rounds, 0.5) == 4
    assert first_round_at_most(rounds, 0.45) == 6
    assert first_round_at_most(rounds, 0.1) is None
    assert first_round_at_most([], 0.1) is None
    assert traffic_until(rounds, 4) == Traffic(40, 80, 4000, 8000)
    reached = reach(rounds, 0.5)
    assert reached is not None
    assert (reached.round, reached.traffic.total) == (4, 120)
    assert reach(rounds, 0.1) is None
    assert reach(rounds, None) is None


def test_a_comparison_measures_all_against_the_first(tmp_path: Path) -> None:
    lines, summary = run_files(loss=2.0**-6, codec="dense-fp32")
    for line in lines:
        line.update(uplink_bytes=40_000, downlink_bytes=40_000)
    dense = write(tmp_path / "dense", lines, summary)
    sparse = write(tmp_path / "sparse", *run_files(8))
    short = write(tmp_path / "short", *run_files(3))
    for run in (dense, sparse):
        write_report(run)
    assert target_loss(read_run(dense), 1.01) == pytest.approx(2.0**-6 * 1.01)
    rows = [ComparisonRow("dense", dense), ComparisonRow("sparse", sparse), ComparisonRow("short", short)]
    found = compare_runs(rows)
    assert [s.reached.round if s.reached else None for s in found.standings] == [6, 6, None]
    assert found.standings[1].ratio == pytest.approx(1200 / 80_000)
    page = write_comparison(tmp_path, rows)
    text = read(page)
    assert "sparse reaches the final loss of dense with 67 times fewer bytes" in text
    assert "not reached" in text
    links = [target for target in checked(page)[1].targets if target.endswith(".html")]
    assert links == ["dense/report.html", "sparse/report.html"]
    assert write_comparison(tmp_path, rows).read_text(encoding="utf-8") == page.read_text(encoding="utf-8")
    assert "differ in more than the codec" not in text
    other = write(tmp_path / "other", *run_files(seed=8))
    assert "seed (4711, 8)" in read(write_comparison(tmp_path, [*rows, ComparisonRow("other", other)]))


def test_a_comparison_without_a_target_is_still_a_page(tmp_path: Path) -> None:
    run = write(tmp_path / "run", *run_files(loss=math.nan))
    assert "without a finite loss" in read(write_comparison(tmp_path, [ComparisonRow("dense", run)] * 2))
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_runs([])
    with pytest.raises(ValueError, match=r"tolerance is 0\.5"):
        compare_runs([ComparisonRow("dense", run)], tolerance=0.5)


def test_figures_are_written_for_people() -> None:
    assert [byte_count(n) for n in (0, 999, 1000, 999_499, 999_500, 12_345_678)] == [
        "0 B", "999 B", "1.00 kB", "999 kB", "1.00 MB", "12.3 MB"
    ]  # fmt: skip
    assert [fewer(r) for r in (0.02, 1.0, 1.5, None, 0.0)] == [
        "50.0 times fewer", "about as many", "1.50 times more", "\N{EN DASH}", "\N{EN DASH}"
    ]  # fmt: skip
    assert [share(r) for r in (0.0251, 0.5, 1.0003)] == ["2.51%", "50.0%", "100%"]
    assert [significant(v) for v in (0.14, 12.3456, 1e-7, math.inf)] == ["0.1400", "12.35", "1.000e-07", "not finite"]
    assert [duration(s) for s in (0.5, 41.2, 725, 12_000)] == ["0.5 s", "41 s", "12 min 5 s", "3 h 20 min"]
    assert difference("accuracy", 0.9, 0.95) == "\N{MINUS SIGN}5.0 pt"


def test_wilson_interval_against_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3 (score without continuity correction).
    low, high = wilson_interval(81 / 263, 263)
    assert (round(low, 4), round(high, 4)) == (0.2553, 0.3662)
    assert wilson_interval(1.0, 20)[1] == 1.0
