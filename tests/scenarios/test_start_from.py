"""A run that trains on from the model of another: what it starts from, and what it refuses."""

import json

import numpy as np
import pytest

from fedglm.compression.downlink import vector_sha256
from fedglm.run_folder.names import CHECKPOINTS, DONE, INITIAL, MODEL, SCENARIO
from fedglm.scenarios.deployment import build_deployed_model, prepare
from fedglm.scenarios.scenario import Scenario, ScenarioError
from fedglm.scenarios.start_from import start_from
from fedglm.server.rounds.checkpoint import Checkpoint

TEXT = """
name = "tiny"
[data]
source = "./records.csv"
label_field = "class"
class_names = ["high", "low"]
feature_fields = ["x", "y"]
feature_ranges = { x = [0, 1], y = [0, 1] }
"""


def build(**changes):
    settings = {name.replace("__", "."): value for name, value in changes.items()}
    return build_deployed_model(Scenario.from_toml(TEXT, settings))


def finish(folder, built):
    """What a finished run leaves behind; return the model that it ended with."""
    vector = (built.model.initial + np.float32(0.25)).astype(np.float16)
    Checkpoint(
        run="0" * 16,
        round=1,
        layout=built.model.layout.sha256,
        participants={},
        rows=[{"round": 1}],
        versions={"vector": vector},
        optimizer={},
    ).save(folder / CHECKPOINTS)
    (folder / DONE).write_text(json.dumps({"model_sha256": vector_sha256(vector.astype(np.float32))}))
    (folder / SCENARIO).write_text(built.scenario.to_toml())
    (folder / MODEL).mkdir()
    (folder / MODEL / "task.json").write_text(built.task.to_json())
    return vector.astype(np.float32)


@pytest.fixture(scope="module")
def plain():
    return build()


def test_version_0_is_the_model_that_the_run_ended_with(tmp_path, plain):
    ended = finish(tmp_path / "first", plain)
    started = start_from(plain, tmp_path / "first")
    assert np.array_equal(started.model.initial, ended)
    assert not np.array_equal(plain.model.initial, ended), "the scenario's own model stays as it is"
    run = prepare(started, tmp_path / "second", 3)
    assert (tmp_path / "second" / INITIAL).read_bytes() == ended.astype("<f4").tobytes()
    assert run.initial_sha256 == vector_sha256(ended)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__preset": "glm-0.5m"}, "has other parameters"),
        ({"data__class_names": ["low", "high"]}, "for another task: its labels"),
        ({"data__feature_ranges": {"x": [0, 2], "y": [0, 1]}}, "for another task: its table"),
    ],
)
def test_a_model_that_would_mean_something_else_is_refused(tmp_path, plain, changes, said):
    finish(tmp_path, plain)
    with pytest.raises(ScenarioError, match=said):
        start_from(build(**changes), tmp_path)


def test_adapters_start_from_those_of_the_same_weights_alone(tmp_path):
    lora = {"model__adapter": "lora", "model__lora_rank": 2}
    adapted = build(**lora)
    ended = finish(tmp_path, adapted)
    assert np.array_equal(start_from(adapted, tmp_path).model.initial, ended)
    for change, said in (({"federation__seed": 9}, "its seed"), ({"model__lora_alpha": 3.0}, "its lora_alpha")):
        with pytest.raises(ScenarioError, match=said):
            start_from(build(**lora, **change), tmp_path)


def test_only_a_finished_run_can_be_started_from(tmp_path, plain):
    finish(tmp_path, plain)
    done = tmp_path / DONE
    done.write_text(json.dumps({"model_sha256": "0" * 64}))
    with pytest.raises(ScenarioError, match="is not of its last round"):
        start_from(plain, tmp_path)
    done.unlink()
    with pytest.raises(ScenarioError, match="holds no finished run"):
        start_from(plain, tmp_path)
