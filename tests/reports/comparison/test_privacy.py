"""The price of privacy: codecs under several epsilons, and which of them no other beats."""

import math

import pytest
from run_files import read, run_files, write

from fedglm.reports.comparison.privacy import TradeoffPoint, collect_tradeoff_points, select_pareto_front
from fedglm.reports.comparison.to_target import ComparisonRow, compare_runs
from fedglm.reports.comparison.write import write_comparison

pytestmark = pytest.mark.usefixtures("unrendered")


def rows(folder, losses):
    """Runs by label, each with its last loss; what stands behind `epsilon=` is what it was asked for."""
    found = []
    for label, loss in losses.items():
        home = write(folder / label, *run_files(2, loss=loss))
        asked = label.rpartition("epsilon=")[2]
        section = "" if asked == "inf" else f"epsilon = {asked}\n"
        (home / "scenario.toml").write_text(f'[model]\npreset = "glm-0.1m"\n[privacy]\n{section}')
        found.append(ComparisonRow(label, (home,)))
    return found


LOSSES = {
    "dense-fp32@epsilon=inf": 0.2,
    "dense-fp32@epsilon=3": 0.4,
    "topk-sign@0.01+epsilon=inf": 0.3,
    "topk-sign@0.01+epsilon=3": 0.35,
}


def test_the_page_shows_what_privacy_costs(tmp_path):
    page = read(write_comparison(tmp_path, rows(tmp_path, LOSSES)))
    assert "What privacy costs" in page
    assert "Loss by epsilon" in page
    found = collect_tradeoff_points(compare_runs(rows(tmp_path / "more", LOSSES)))
    assert [(point.codec, point.epsilon, point.loss) for point in found] == [
        ("dense-fp32", math.inf, 0.2),
        ("dense-fp32", 3, 0.4),
        ("topk-sign@0.01", math.inf, 0.3),
        ("topk-sign@0.01", 3, 0.35),
    ]


def test_runs_of_one_epsilon_have_no_tradeoff(tmp_path):
    alone = {label: loss for label, loss in LOSSES.items() if label.endswith("inf")}
    assert "What privacy costs" not in read(write_comparison(tmp_path, rows(tmp_path, alone)))


def point(epsilon, size, loss):
    return TradeoffPoint("codec", epsilon, loss, None, size)


def test_a_point_is_dominated_by_one_that_is_nowhere_worse():
    private, dear, cheap = point(1, 100, 0.5), point(8, 100, 0.2), point(8, 10, 0.3)
    worse, diverged = point(8, 100, 0.6), point(1, 1, None)
    assert select_pareto_front([private, dear, cheap, worse, diverged]) == [private, dear, cheap]
    # Sizes that differ by a hundredth are the same: noise makes as much of a difference.
    assert select_pareto_front([point(3, 100.5, 0.4), point(3, 100, 0.5)]) == [point(3, 100.5, 0.4)]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--epsilons", "1,x"], "give numbers with commas between"),
        (["--epsilons", "1,1"], "each number above 0 once"),
        (["--epsilons", "0,1"], "each number above 0 once"),
        (["--epsilons", "1,3", "--no-dp"], "inf is without noise"),
        (["--epsilons", "1,3", "--epsilon", "2"], "inf is without noise"),
    ],
)
def test_what_is_no_list_of_epsilons(fedglm, words, said):
    assert said in fedglm("compare", "hospital", *words).line()


@pytest.mark.slow
def test_a_federation_under_several_epsilons(fedglm, tmp_path):
    options = ("--rounds", "2", "--set", "evaluation.baselines=[]", "--out", tmp_path / "runs", "--json")
    found = fedglm("compare", "hospital", "--epsilons", "8,inf", "--codecs", "dense-fp32,topk-sign", *options).json
    assert [entry["label"] for entry in found["codecs"]] == [
        "dense-fp32@epsilon=inf",
        "dense-fp32@epsilon=8",
        "topk-sign@epsilon=inf",
        "topk-sign@epsilon=8",
    ]
    assert [entry["epsilon"] is None for entry in found["codecs"]] == [True, False, True, False]
