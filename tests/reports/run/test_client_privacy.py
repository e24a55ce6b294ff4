"""Differential privacy of whole nodes as people see it: the page, the terminal, and a comparison of noised runs."""

import math
from pathlib import Path
from typing import Any

import pytest
from run_files import PRIVACY, read, run_files, write

from fedglm.privacy.accounting.statement import (
    NO_GUARANTEE_AGAINST_SERVER,
    make_summary_fields,
    state_client_guarantee,
    state_unit_guarantee,
)
from fedglm.reports.comparison.as_json import comparison_json
from fedglm.reports.comparison.to_target import ComparisonRow, compare_runs
from fedglm.reports.comparison.write import write_comparison
from fedglm.reports.run.write import write_report

pytestmark = pytest.mark.usefixtures("unrendered")

MECHANISM = {
    "sampling_rate": 0.5,
    "steps": 1,
    "clipping_norm": 0.25,
    "noise_multiplier": 1.2,
    "unit": "node",
    "records_per_unit": 1,
}
OF_NODES = state_client_guarantee(8.0, 5e-4).text
NOISED: dict[str, Any] = {
    "client_epsilon": 7.96,
    "client_delta": 5e-4,
    "client_mechanism": MECHANISM,
    **make_summary_fields([NO_GUARANTEE_AGAINST_SERVER, state_client_guarantee(8.0, 5e-4)]),
}
OF_UNITS = state_unit_guarantee(3.25, 1e-5, "patient")
PRIVATE: dict[str, Any] = {"epsilon": 3.25, "delta": 1e-5, **make_summary_fields([OF_UNITS])}
BOTH = NOISED | PRIVATE | make_summary_fields([OF_UNITS, state_client_guarantee(8.0, 5e-4)])


def page_of(folder: Path, **changes: Any) -> str:
    return read(write_report(write(folder, *run_files(2, 200, **changes))))


def test_a_run_that_protects_whole_nodes_says_whom_from_whom_and_how(tmp_path: Path) -> None:
    text = page_of(tmp_path, **NOISED)
    assert f"Privacy guarantee for whole nodes {OF_NODES}" in text
    assert "Privacy loss, whole node ε = 7.96 δ = 0.0005; not against the server" in text
    assert "ε, over all rounds 7.96 δ 0.0005 An update's norm, clipped to 0.25" in text
    # 1.2 x 0.25 / (0.5 x 200)
    assert "Noise on a round's sum 1.2 times that norm Noise on the mean, each parameter 0.003" in text
    assert "A node's chance to be in a round 0.5 " in text
    assert "counts on nobody but the server knowing who took part" in text
    assert "No privacy guarantee against the server The sites add no noise" in text
    assert "drawn afresh" in text
    assert "pooled, without noise reaches" in text.lower()


def test_where_every_node_takes_part_no_sample_is_to_be_kept_secret(tmp_path: Path) -> None:
    text = page_of(tmp_path, **NOISED | {"client_mechanism": MECHANISM | {"sampling_rate": 1.0}})
    assert "counts on nobody" not in text
    assert "summary.json are for the server alone" in text


def test_a_run_with_both_kinds_states_both_and_warns_of_nothing(tmp_path: Path) -> None:
    text = page_of(tmp_path, **BOTH)
    assert f"Privacy guarantee, against the server too {OF_UNITS.text} ε, greatest" in text
    assert f"Privacy guarantee for whole nodes {OF_NODES} Protected" in text
    assert "ε = 3.25 δ = 1e-05; each unit of a site" in text
    assert "ε = 7.96" in text
    assert "No privacy guarantee" not in text


@pytest.mark.parametrize("epsilon", [None, math.inf, math.nan, -1.0, "8"])
def test_a_run_with_neither_stays_loud(tmp_path: Path, epsilon: Any) -> None:
    text = page_of(tmp_path, **NOISED | {"client_epsilon": epsilon, **PRIVACY})
    assert "No privacy guarantee The updates were sent as they are." in text
    assert "whole node" not in text
    assert "drawn afresh" not in text


@pytest.mark.parametrize("odd", [None, "x", {}, {"noise_multiplier": "y", "clipping_norm": math.nan}])
def test_what_the_files_do_not_say_is_a_dash(tmp_path: Path, odd: Any) -> None:
    text = page_of(tmp_path, client_epsilon=2.0, client_mechanism=odd, client_delta=odd, privacy=None, guarantees=odd)
    assert "The run records differential privacy of whole nodes" in text
    assert "No privacy guarantee against the server" in text
    assert "δ \N{EN DASH} An update's norm, clipped to \N{EN DASH}" in text
    assert "not finite" not in text


# --- folders of earlier versions, which have one text and no codes


def older(**changes: Any) -> dict[str, Any]:
    return {"guarantees": None, **changes}


def test_an_older_run_is_told_by_its_figures_and_not_by_its_words(tmp_path: Path) -> None:
    nonsense = "Differential privacy of whole nodes: and all that."
    text = page_of(tmp_path / "a", **older(privacy=nonsense))
    assert "No privacy guarantee This run adds no noise." in text
    assert nonsense not in text
    noised = {name: NOISED[name] for name in ("client_epsilon", "client_delta", "client_mechanism", "privacy")}
    text = page_of(tmp_path / "b", **older(**noised))
    assert "Privacy guarantee for whole nodes Differential privacy of whole nodes: the models of all rounds" in text
    assert "private at epsilon 7.96 and delta 0.0005" in text
    assert "No privacy guarantee against the server The sites add no noise" in text
    both = older(**noised | {"epsilon": 3.25, "delta": 1e-5, "privacy": BOTH["privacy"]})
    text = page_of(tmp_path / "c", **both)
    assert f"Privacy guarantee, against the server too {OF_UNITS.text}" in text
    assert "No privacy guarantee" not in text
    text = page_of(tmp_path / "d", **older(epsilon=3.25, delta=1e-5, privacy=OF_UNITS.text))
    assert f"Privacy guarantee {OF_UNITS.text} ε, greatest" in text


def test_a_guarantee_that_no_figure_bears_out_is_not_shown_as_one(tmp_path: Path) -> None:
    text = page_of(tmp_path, **make_summary_fields([OF_UNITS]))  # as where every site refused
    assert "No differential privacy The updates that left the sites may tell about their data." in text


@pytest.mark.parametrize("odd", [[], [1], {}, "none", [{"code": "units"}], [{"code": 1, "detail": []}]])
def test_codes_that_are_damaged_are_no_codes(tmp_path: Path, odd: Any) -> None:
    assert "No privacy guarantee This run adds no noise." in page_of(tmp_path, guarantees=odd)


# --- comparisons


def rows_of(folder: Path, **noise: dict[str, Any]) -> list[ComparisonRow]:
    return [
        ComparisonRow(codec, (write(folder / codec, *run_files(2, codec=codec, **changes)),))
        for codec, changes in noise.items()
    ]


def compared(folder: Path, **noise: dict[str, Any]) -> str:
    return read(write_comparison(folder, rows_of(folder, **noise)))


def test_a_comparison_of_noised_runs_says_in_one_line_what_that_means(tmp_path: Path) -> None:
    means_nothing = "It is fresh in each run: differences between codecs below those between two runs of one codec"
    both = "epsilon 3.25 at delta 1e-05 for each unit of a site, epsilon 7.96 at delta 0.0005 for each whole node"
    assert f"Noise in all of these runs: {both}. {means_nothing}" in compared(tmp_path / "both", int8=BOTH, dense=BOTH)
    alone = compared(tmp_path / "alone", int8=NOISED, dense=NOISED)
    assert "Noise in all of these runs: epsilon 7.96 at delta 0.0005 for each whole node. It is fresh" in alone
    mixed = compared(tmp_path / "mixed", int8={}, dense=PRIVATE)
    assert "Noise: int8, none; dense, epsilon 3.25 at delta 1e-05 for each unit of a site. It is fresh" in mixed
    assert "fresh in each run" not in compared(tmp_path / "bare", int8={}, dense={})


def test_the_json_of_a_comparison_holds_what_each_codec_spent(tmp_path: Path) -> None:
    bare, noised = comparison_json(compare_runs(rows_of(tmp_path, int8={}, dense=BOTH)))["codecs"]
    assert (bare["epsilon"], bare["client_epsilon"]) == (None, None)
    assert (noised["epsilon"], noised["client_epsilon"]) == (3.25, 7.96)
    assert noised["runs"][0]["client_epsilon"] == 7.96


# --- from outside


def test_the_terminal_shows_the_guarantee_and_what_was_spent(fedglm: Any, tiny: Path, tmp_path: Path) -> None:
    noise = ("--set", "client_privacy.epsilon=8", "--set", "federation.fraction=0.7", "--rounds", 1, "--nodes", 4)
    result = fedglm("simulate", tiny, *noise, "--out", tmp_path / "run")
    assert result.code == 0, result.err
    assert max(map(len, result.out.splitlines()[:-1])) <= 100
    text = " ".join(result.out.split())
    assert "No privacy guarantee against the server" in text
    assert "Differential privacy of whole nodes: the models of all rounds are private at epsilon 8 and delta" in text
    summary = fedglm("simulate", tiny, *noise, "--out", tmp_path / "run", "--resume", "--json").json
    assert summary["client_mechanism"]["sampling_rate"] == 0.7
    sigma = summary["client_mechanism"]["noise_multiplier"]
    assert f"spent: epsilon {summary['client_epsilon']:.2f} for each whole node, against whoever sees the" in text
    assert f"noise of {sigma:.3g} x the clipping norm 1, a round" in text
    page = read(tmp_path / "run" / "report.html")
    assert "Privacy guarantee for whole nodes Differential privacy of whole nodes:" in page


def test_a_run_whose_samples_were_all_empty_is_shown_and_shown_again(fedglm: Any, tiny: Path, tmp_path: Path) -> None:
    settings = ("client_privacy.epsilon=8", "client_privacy.clipping_norm=1e-3", "federation.fraction=1e-6")
    noise = ("--rounds", 1, *(part for each in (*settings, "downlink.grid=fp32") for part in ("--set", each)))
    for more in ((), ("--resume",)):  # which reads the summary from its file, where NaN is null
        result = fedglm("simulate", tiny, *noise, "--out", tmp_path / "run", *more)
        assert result.code == 0, result.err
        ratio, fewer = (line for line in result.out.splitlines() if line.split()[:1] in (["ratio"], ["times"]))
        assert ratio.split() == ["ratio", "-", "-", "-"]
        assert fewer.split() == ["times", "fewer", "-", "-", "-"]


def test_the_terminal_s_comparison_says_that_its_runs_are_noised(fedglm: Any, tiny: Path, tmp_path: Path) -> None:
    noise = ("--set", "client_privacy.epsilon=8", "--rounds", 1, "--codecs", "dense-fp32,int8")
    result = fedglm("compare", tiny, *noise, "--out", tmp_path / "runs")
    assert result.code == 0, result.err
    assert max(map(len, result.out.splitlines()[:-1])) <= 100
    text = " ".join(result.out.split())
    assert "Noise in all of these runs: epsilon " in text
    assert "for each whole node. It is fresh in each run: differences between codecs below those" in text
