"""A deployed run without its processes: the server's held-out records, its evaluation, the summary and the page."""

import json

import numpy as np
import pytest
from run_files import read

from fedglm.autoglm.errors import DataError
from fedglm.reports.run.write import write_report
from fedglm.run_folder.names import DONE, EVALUATION, EVENTS, ROUNDS, RUN, SUMMARY
from fedglm.scenarios.deployed_summary import summarize_deployed_run
from fedglm.scenarios.deployment import build_deployed_model, prepare
from fedglm.scenarios.held_out import load_held_out
from fedglm.scenarios.overrides import load_scenario
from fedglm.scenarios.scenario import Scenario, ScenarioError, scenario_text
from fedglm.scenarios.stage import build_scenario
from fedglm.server.deployment.run_evaluation import load_evaluation
from fedglm.server.deployment.run_file import RunFile
from fedglm.server.errors import ProjectError
from fedglm.simulations.evaluation import Evaluator

pytestmark = pytest.mark.usefixtures("unrendered", "unsynced")

SITES = 3
HOSPITAL = scenario_text("hospital")
OWN = {
    "data.source": "nowhere.csv",
    "data.label_field": "outcome",
    "data.class_names": ["ill", "well"],
    "data.feature_fields": ["x", "y"],
    "data.feature_ranges": {"x": [0, 1], "y": [0, 1]},
    "privacy.epsilon": None,
    "federation.nodes": None,
}


def hospital(**changes):
    return Scenario.from_toml(HOSPITAL, {"federation.nodes": None, "privacy.units": 130, **changes})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The run of the built-in data that three sites are to take part in: its model and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    built = build_deployed_model(hospital())
    prepare(built, folder, SITES)
    return built, folder


def finish(folder, scores):
    """Write what the process of a run leaves behind; `scores` are a loss and an accuracy a round."""
    rows, events = [], []
    for number, (loss, accuracy) in enumerate(scores, start=1):
        faults = {"site-2": "its norm is too large"} if number == 2 else {}
        counts = {"nodes_sampled": 3, "nodes_accepted": 3 - len(faults), "nodes_rejected": len(faults)}
        traffic = dict(zip(("uplink_bytes", "downlink_bytes"), (100, 300), strict=True))
        dense = dict.fromkeys(("dense_uplink_bytes", "dense_downlink_bytes"), 4000)
        result = {"round": number, "loss": loss, "accuracy": accuracy, "rejections": faults, "epsilon": None}
        rows.append(result | counts | traffic | dense | {"wall_s": 1.5, "virtual_s": None})
        for site in ("site-0", "site-1", "site-2"):
            kind = {"event": "rejected", "reason": faults[site]} if site in faults else {"event": "reply"}
            events.append({"time": "2027-01-04T10:00:00+00:00", "round": number, "node": site, **kind})
    (folder / ROUNDS).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / EVENTS).write_text("".join(f"{json.dumps(event)}\n" for event in events))
    (folder / DONE).write_text(json.dumps({"rounds": len(rows), "model_sha256": "ab" * 32}))


def report(built, folder, scores):
    finish(folder, scores)
    summary = summarize_deployed_run(built, folder, SITES, (150, 350))
    (folder / SUMMARY).write_text(json.dumps(summary))
    return summary, read(write_report(folder))


def test_the_server_evaluates_built_in_data_as_the_simulation_does(prepared):
    built, folder = prepared
    evaluate = load_evaluation(folder, RunFile.load(folder).evaluation_sha256)
    stage = build_scenario(hospital(**{"federation.nodes": SITES}).to_toml())
    vector = built.model.initial + np.random.default_rng(1).normal(0, 0.02, built.model.initial.size).astype("f4")
    simulated, here = Evaluator(stage.data, stage.model, 512).evaluate_all(vector), evaluate(vector)
    assert here.loss == pytest.approx(simulated.loss, rel=1e-6)
    assert (here.metric, here.count) == (pytest.approx(simulated.metric), simulated.count)
    assert evaluate(built.model.initial).loss != here.loss


def test_records_that_changed_on_the_disk_evaluate_nothing(prepared, tmp_path):
    _, folder = prepared
    sha256 = RunFile.load(folder).evaluation_sha256
    (tmp_path / EVALUATION).write_bytes((folder / EVALUATION).read_bytes()[:-1] + b"x")
    with pytest.raises(ProjectError, match="damaged"):
        load_evaluation(tmp_path, sha256)
    assert load_evaluation(tmp_path, None) is None


def test_a_run_of_before_has_no_evaluation_and_opens(prepared, tmp_path):
    _, folder = prepared
    fields = json.loads((folder / RUN).read_text())
    del fields["evaluation_sha256"]
    (tmp_path / RUN).write_text(json.dumps(fields))
    assert RunFile.load(tmp_path).evaluation_sha256 is None


def test_summary_and_page_have_what_the_server_measured(prepared):
    summary, page = report(*prepared, [(0.6, 0.5), (0.25, 0.93), (0.31, 0.91)])
    assert (summary["loss"], summary["accuracy"]) == (0.31, 0.91)
    assert summary["best_round"] == {"round": 2, "loss": 0.25, "accuracy": 0.93}
    assert (summary["rounds"], summary["uplink_bytes"], summary["wall_s"]) == (3, 300, 4.5)
    assert summary["participation"][2] == {
        "name": "site-2",
        "accepted": 2,
        "rejected": 1,
        "last_fault": None,
    }
    assert 0.5 < summary["initial"]["loss"] < 1
    for words in ("91.0% accuracy after 3 rounds at 3 sites", "The best round was 2", "0.2500", "1 reply rejected"):
        assert words in page, words
    assert "ε ≤ 8.00" in page
    assert "Privacy guarantee" in page
    assert "No differential privacy" not in page
    assert "fedglm run scenario.toml -C PROJECT" in page
    assert "fedglm simulate" not in page.split("To repeat it")[1].split("scenario.toml, every")[0]


def test_a_training_that_diverged_is_shown_as_one(prepared):
    summary, page = report(*prepared, [(0.6, 0.5), (None, 0.4)])
    assert summary["loss"] is None
    assert summary["best_round"]["round"] == 1
    assert "not finite from round 2" in page


def test_what_was_not_measured_is_said_and_no_figure_made_up(tmp_path):
    built = build_deployed_model(hospital(**OWN))
    prepare(built, tmp_path, SITES)
    assert not (tmp_path / EVALUATION).exists()
    summary, page = report(built, tmp_path, [(None, None), (None, None)])
    assert "loss" not in summary
    assert "accuracy" not in summary
    assert "Trained for 2 rounds at 3 sites" in page
    assert "was not measured" in page
    assert "diverged" not in page
    assert "No differential privacy" in page or "No privacy" in page


def test_a_file_of_the_server_is_read_by_the_fields_of_the_sites(tmp_path):
    (tmp_path / "held.csv").write_text("x,y,outcome\n0.1,0.2,ill\n0.9,0.8,well\n0.2,0.1,ill\n")
    (tmp_path / "own.toml").write_text(hospital(**OWN, **{"evaluation.data": "held.csv"}).to_toml())
    scenario = load_scenario(tmp_path / "own.toml")
    assert scenario.evaluation.data == str(tmp_path / "held.csv"), "a path counts from the scenario's folder"
    task = build_deployed_model(scenario).task
    assert load_held_out(scenario, task, SITES).labels.tolist() == [0, 1, 0]
    few = scenario.model_copy(update={"evaluation": scenario.evaluation.model_copy(update={"sequences": 2})})
    assert len(load_held_out(few, task, SITES)) == 2


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"evaluation.data": "/gone/held.csv"}, ScenarioError, "held-out records of its own"),
        ({**OWN, "evaluation.data": "/gone/held.csv"}, DataError, "held.csv"),
        ({**OWN, "evaluation.data": "of"}, ScenarioError, "a file or 'off'"),
    ],
)
def test_what_cannot_be_evaluated_on_is_refused_before_the_run(prepared, changes, error, said):
    with pytest.raises(error, match=said):
        load_held_out(hospital(**changes), prepared[0].task, SITES)


@pytest.mark.parametrize("changes", [{"evaluation.data": "off"}, OWN])
def test_without_records_there_is_no_evaluation(prepared, changes):
    assert load_held_out(hospital(**changes), prepared[0].task, SITES) is None
