"""A comparison from run folders that each test writes: what is measured, page and JSON, and what `--codecs` says."""

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_files import checked, read, run_files, write

from fedglm.compression.codec import codec_names, codec_options
from fedglm.compression.errors import CodecError
from fedglm.compression.settings import UpdateSettings
from fedglm.reports.comparison.as_json import comparison_json
from fedglm.reports.comparison.to_target import (
    ComparisonRow,
    Spread,
    compare_runs,
    compute_target_loss,
    find_first_round_at_most,
    find_reached,
    sum_traffic_until,
)
from fedglm.reports.comparison.write import write_comparison
from fedglm.run_folder.record import RoundRecord, Score, read_run
from fedglm.run_folder.traffic import Traffic
from fedglm.scenarios.scenario import ScenarioError
from fedglm.simulations.comparison.variants import parse_variants

pytestmark = pytest.mark.usefixtures("unrendered")

DENSE = "dense-fp32"


def rounds_of(*losses: float | None) -> list[RoundRecord]:
    return [
        RoundRecord(round=number, score=Score(loss=loss), traffic=Traffic(10, 20, 1000, 2000))
        for number, loss in enumerate(losses, start=1)
    ]


def run(folder: Path, codec: str, losses: list[float], up: int, down: int, *, seed: int = 7, **changes: Any) -> Path:
    """A run with these losses by round, and so many bytes each round."""
    lines, summary = run_files(len(losses), codec=codec, seed=seed, loss=losses[-1], **changes)
    for line, loss in zip(lines, losses, strict=True):
        line.update(loss=loss, uplink_bytes=up, downlink_bytes=down)
    summary.update(uplink_bytes=up * len(losses), downlink_bytes=down * len(losses))
    write(folder, lines, summary)
    (folder / "scenario.toml").write_text(f'[update]\ncodec = "{codec}"\n[federation]\nrounds = {len(losses)}\n')
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> list[ComparisonRow]:
    """Dense, a codec that reaches it under both seeds, and one that does under the first alone; seeds 7 and 8."""
    dense = (
        run(tmp_path / DENSE / "seed-7", DENSE, [3.0, 2.0, 1.0, 1.0], 1000, 100),
        run(tmp_path / DENSE / "seed-8", DENSE, [3.0, 2.5, 2.2, 2.0], 1000, 100, seed=8),
    )
    sparse = (
        run(tmp_path / "sparse" / "seed-7", "topk-sign", [4.0, 3.0, 2.0, 1.5, 1.2, 1.0], 10, 100),
        run(tmp_path / "sparse" / "seed-8", "topk-sign", [4.0, 3.0, 2.0, 1.9, 1.8, 1.8], 10, 100, seed=8),
    )
    once = (
        run(tmp_path / "once" / "seed-7", "int8", [3.0, 2.0, 1.0, 0.9], 250, 100),
        run(tmp_path / "once" / "seed-8", "int8", [3.0, 2.6, 2.4, 2.5], 250, 100, seed=8),
    )
    return [ComparisonRow(DENSE, dense), ComparisonRow("topk-sign@0.01", sparse), ComparisonRow("int8", once)]


def test_the_first_round_at_the_target_and_the_bytes_until_then() -> None:
    rounds = rounds_of(0.9, math.nan, None, 0.5, 0.6, 0.4)
    assert find_first_round_at_most(rounds, 0.5) == 4
    assert find_first_round_at_most(rounds, 0.45) == 6
    assert find_first_round_at_most(rounds, 0.1) is None
    assert find_first_round_at_most([], 0.1) is None
    assert sum_traffic_until(rounds, 4) == Traffic(40, 80, 4000, 8000)
    reached = find_reached(rounds, 0.5)
    assert reached is not None
    assert (reached.round, reached.traffic.total) == (4, 120)
    assert find_reached(rounds, 0.1) is None
    assert find_reached(rounds, None) is None


@given(st.lists(st.floats(1e-3, 1e6), min_size=1), st.booleans())
def test_a_mean_lies_between_the_least_and_the_greatest(values: list[float], geometric: bool) -> None:
    spread = Spread.over([*values, None], geometric=geometric)
    assert spread is not None
    assert (spread.low, spread.high) == (min(values), max(values))
    assert spread.low <= spread.mean <= spread.high


def test_a_spread_hides_no_figure_that_is_not_finite() -> None:
    assert Spread.over([None, None]) is None
    diverged = Spread.over([1.0, math.inf])
    assert diverged is not None
    assert math.isnan(diverged.mean)
    geometric = Spread.over([0.5, 2.0], geometric=True)
    assert geometric is not None
    assert geometric.mean == pytest.approx(1.0)


def test_each_run_is_held_against_the_baseline_of_its_own_seed(rows: list[ComparisonRow]) -> None:
    found = compare_runs(rows, tolerance=1.0)
    assert found.seeds == ("7", "8")
    assert [seed_run.target for seed_run in found.codecs[1].seed_runs] == [1.0, 2.0]
    dense, sparse, once = found.codecs
    assert [t.reached.round if t.reached else None for t in dense.seed_runs] == [3, 4]
    assert [t.reached.round if t.reached else None for t in sparse.seed_runs] == [6, 3]
    assert [t.reached.round if t.reached else None for t in once.seed_runs] == [3, None]
    # 3 rounds of 1000 against 6 of 10, and 4 of 1000 against 3 of 10: 50 and 133 times fewer.
    up = sparse.ratio("up")
    assert up is not None
    assert 1 / up.mean == pytest.approx(math.sqrt(50 * 4000 / 30))
    assert (1 / up.high, 1 / up.low) == pytest.approx((50, 4000 / 30))
    assert [t.rounds_over_baseline for t in sparse.seed_runs] == [2.0, 0.75]
    assert [t.rounds_over_baseline_run for t in sparse.seed_runs] == [1.5, 0.75]
    assert (once.reached, once.always_reached, sparse.always_reached) == (1, False, True)
    assert once.seed_runs[1].best_loss == 2.4


def test_the_json_says_the_same_for_each_codec_and_each_run(rows: list[ComparisonRow]) -> None:
    found = comparison_json(compare_runs(rows, tolerance=1.0))
    assert (found["seeds"], found["baseline"], found["target_loss"]) == ([7, 8], DENSE, 1.5)
    dense, sparse, once = found["codecs"]
    assert dense["uplink_times_fewer"] == dense["roundtrip_times_fewer"] == 1
    assert dense["stands_for"] == "FedAvg as Flower sends it"
    assert (sparse["loss"], sparse["loss_range"]) == (pytest.approx(1.4), [1.0, 1.8])
    assert (sparse["rounds_to_target"], sparse["rounds_to_target_range"]) == (4.5, [3, 6])
    assert sparse["uplink_times_fewer_range"] == pytest.approx([50, 4000 / 30])
    assert sparse["downlink_times_fewer_range"] == pytest.approx([0.5, 4 / 3])
    assert (once["seeds_reached"], once["rounds_to_target"]) == (1, 3)
    first, second = once["runs"]
    assert (first["seed"], first["uplink_bytes_to_target"], first["bytes_to_target"]) == (7, 750, 1050)
    assert first["uplink_times_fewer"] == pytest.approx(4)
    assert (second["seed"], second["rounds_to_target"], second["uplink_times_fewer"]) == (8, None, None)
    assert (second["target_loss"], second["best_loss"]) == (2.0, 2.4)


def test_the_page_shows_means_ranges_and_every_run(tmp_path: Path, rows: list[ComparisonRow]) -> None:
    for row in rows:
        for folder in row.folders:
            (folder / "report.html").touch()
    page = write_comparison(tmp_path, rows, tolerance=1.0)
    text = read(page)
    assert "topk-sign reaches the final loss of dense-fp32 with 8.16 times fewer bytes (82 times fewer up)" in text
    assert "under 3 codecs and 2 seeds (7, 8)" in text
    assert "1 of 2" in text  # int8
    assert "81.6 50.0\N{EN DASH}133" in text
    assert "STC (Sattler et al. 2019), with error feedback" in text
    assert "Codecs with more rounds do more local work" in text
    assert "differ in more than the codec" not in text
    links = [target for target in checked(page)[1].targets if target.endswith(".html")]
    assert links == [f"{label}/seed-{n}/report.html" for label in (DENSE, "sparse", "once") for n in (7, 8)]
    pictures = {svg.get("aria-label") or "" for svg in ET.fromstring(page.read_text()).iter("svg")}  # noqa: S314
    for kind in ("Loss by bytes uploaded", "Loss by bytes sent, both ways", "Loss by round", "Bytes to the target"):
        assert any(label.startswith(kind) for label in pictures)
    assert write_comparison(tmp_path, rows, tolerance=1.0).read_text() == page.read_text()


def test_a_codec_that_wins_under_some_seeds_alone_wins_nothing(tmp_path: Path, rows: list[ComparisonRow]) -> None:
    text = read(write_comparison(tmp_path, [rows[0], rows[2]], tolerance=1.0))
    assert "None reaches the final loss of dense-fp32 with fewer bytes under every seed" in text
    never = run(tmp_path / "never", "topk-sign", [3.0, 2.5], 10, 100)
    single = [ComparisonRow(DENSE, rows[0].folders[:1]), ComparisonRow("never", (never,))]
    assert "not reached best 2.500" in read(write_comparison(tmp_path, single, tolerance=1.0))


def test_a_comparison_measures_all_against_the_first(tmp_path: Path) -> None:
    lines, summary = run_files(loss=2.0**-6, codec="dense-fp32")
    for line in lines:
        line.update(uplink_bytes=40_000, downlink_bytes=40_000)
    dense = write(tmp_path / "dense", lines, summary)
    sparse = write(tmp_path / "sparse", *run_files(8))
    for folder in (dense, sparse):
        (folder / "report.html").touch()
    assert compute_target_loss(read_run(dense), 1.01) == pytest.approx(2.0**-6 * 1.01)
    rows = [ComparisonRow("dense", (dense,)), ComparisonRow("sparse", (sparse,))]
    page = write_comparison(tmp_path, rows)
    text = read(page)
    assert "sparse reaches the final loss of dense with 67 times fewer bytes (100 times fewer up)" in text
    assert "One run a codec: small differences may be chance" in text
    links = [target for target in checked(page)[1].targets if target.endswith(".html")]
    assert links == ["dense/report.html", "sparse/report.html"]
    assert "differ in more than the codec" not in text
    other = ComparisonRow("other", (write(tmp_path / "other", *run_files(seed=8)),))
    assert "seed (4711, 8)" in read(write_comparison(tmp_path, [*rows, other]))
    (tmp_path / "other" / "scenario.toml").write_text("[training]\nlocal_steps = 99\n")
    assert "training.local_steps (not set, 99)" in read(write_comparison(tmp_path, [*rows, other]))


def test_a_comparison_without_a_target_is_still_a_page(tmp_path: Path) -> None:
    folder = write(tmp_path / "run", *run_files(loss=math.nan))
    row = ComparisonRow("dense", (folder,))
    assert "without a finite loss" in read(write_comparison(tmp_path, [row] * 2))
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_runs([])
    with pytest.raises(ValueError, match=r"tolerance is 0\.5"):
        compare_runs([row], tolerance=0.5)
    with pytest.raises(ValueError, match="one run a seed: dense 1, b 2"):
        compare_runs([row, ComparisonRow("b", (folder, folder))])


def test_a_seed_whose_baseline_diverged_has_no_target(tmp_path: Path, rows: list[ComparisonRow]) -> None:
    broken = run(tmp_path / "broken", DENSE, [3.0, math.nan], 1000, 100, seed=8)
    row = ComparisonRow(DENSE, (rows[0].folders[0], broken))
    found = compare_runs([row, rows[1]], tolerance=1.0)
    assert (found.target, found.codecs[1].reached) == (Spread(1.0, 1.0, 1.0), 1)
    assert "under every seed" in read(write_comparison(tmp_path, [row, rows[1]], tolerance=1.0))


@pytest.mark.parametrize(
    ("text", "label", "settings"),
    [
        ("int8", "int8", ["update.codec=int8"]),
        ("topk-sign@0.010", "topk-sign@0.01", ["update.codec=topk-sign", "update.density=0.010"]),
        ("topk-sign@density=1e-2", "topk-sign@0.01", ["update.codec=topk-sign", "update.density=1e-2"]),
        (
            "topk-sign@feedback=false+density=0.01",
            "topk-sign@0.01+feedback=false",
            ["update.codec=topk-sign", "update.feedback=false", "update.density=0.01"],
        ),
        (
            "int8@rounds=150+downlink.codec=int8+training.learning_rate=1e+3",
            "int8@rounds=150+downlink.codec=int8+training.learning_rate=1000",
            ["update.codec=int8", "federation.rounds=150", "downlink.codec=int8", "training.learning_rate=1e+3"],
        ),
        (
            'int8@evaluation.baselines=["alone","pooled"]+model.path=/a b/c',
            "int8@evaluation.baselines=-alone-pooled-+model.path=-a-b-c",
            ["update.codec=int8", 'evaluation.baselines=["alone","pooled"]', "model.path=/a b/c"],
        ),
    ],
)
def test_a_variant_is_a_label_and_settings(text: str, label: str, settings: list[str]) -> None:
    plain, variant, last = parse_variants(f"dense-fp32, {text} ,topk-fp16", density=0.5)
    assert (variant.label, list(variant.settings)) == (label, settings)
    assert plain.settings == ("update.codec=dense-fp32",)
    assert last.settings == ("update.codec=topk-fp16", "update.density=0.5")
    assert last.label == "topk-fp16"


def test_every_key_of_update_is_known_and_long_labels_stay_apart() -> None:
    others = {option for name in codec_names() for option in codec_options(name)} - set(codec_options("topk-sign"))
    for key in set(UpdateSettings.model_fields) - {"codec", "density"}:
        if key in others:
            with pytest.raises(ScenarioError, match=f"topk-sign has no {key}: leave {key}=1 out"):
                parse_variants(f"topk-sign@{key}=1")
        else:
            assert parse_variants(f"topk-sign@{key}=1")[0].settings[1] == f"update.{key}=1"
    one, other = parse_variants(f"int8@model.path={'x' * 300}a,int8@model.path={'x' * 300}b")
    assert one.label != other.label
    assert len(one.label) <= 100


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("topk-sign@densty=0.1", "unknown key densty: did you mean density"),
        ("topk-sign@round=3", "unknown key round: did you mean rounds"),
        ("topk-sign@0.1+density=0.2", "update.density is given twice"),
        ("topk-sign@density=", "give density a value"),
        ("topk-sign@", "a density is a number"),
        ("topk-sign@true", "a density is a number"),
        ("int8@density=0.1", "int8 has no density: leave density=0.1 out"),
        ("int8@codec=topk-sign", "the codec stands before the @"),
        ("int8@federation.seed=3", "--seeds"),
    ],
)
def test_a_variant_that_makes_no_sense_is_refused(text: str, said: str) -> None:
    with pytest.raises(ScenarioError, match=said):
        parse_variants(text)


def test_a_codec_that_does_not_exist_is_named() -> None:
    with pytest.raises(CodecError, match="did you mean topk-sign"):
        parse_variants("topk-sing@0.1")
