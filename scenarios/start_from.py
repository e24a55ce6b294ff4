"""A run that trains on from the model that another run ended with."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Final

from fedglm.compression.downlink import vector_sha256
from fedglm.inference.inputs.task import TASK_FILE
from fedglm.run_folder.names import CHECKPOINTS, DONE, MODEL, SCENARIO
from fedglm.scenarios.deployment import BuiltModel
from fedglm.scenarios.scenario import Scenario, ScenarioError
from fedglm.server.rounds.checkpoint import load_latest

_OF_ADAPTERS: Final = ("preset", "path", "adapter", "lora_alpha")
"""Settings that decide the weights under the adapters, and what these do there."""


def start_from(built: BuiltModel, folder: Path) -> BuiltModel:
    """Return the model of a scenario with the parameters that a finished run ended with as version 0.

    Args:
        built: Model of the scenario.
        folder: Folder of the finished run, a deployed one.

    Raises:
        ScenarioError: There is no such run, it is not finished, or its model is another one; the message says which.
        CheckpointError: Its checkpoints are damaged.
    """
    if not (folder / DONE).is_file():
        raise ScenarioError(f"{folder} holds no finished run to start from: give the name of one, or its folder")
    checkpoint = load_latest(folder / CHECKPOINTS)
    if checkpoint is None:
        raise ScenarioError(f"{folder} holds no checkpoint of its last round, so nothing to start from")
    _check_same_model(built, folder, checkpoint.layout)
    vector = checkpoint.versions["vector"].astype(built.model.initial.dtype)
    if vector_sha256(vector) != json.loads((folder / DONE).read_text())["model_sha256"]:
        raise ScenarioError(f"the checkpoint in {folder} is not of its last round: resume the run first")
    return replace(built, model=built.model.starting_from(vector))


def _check_same_model(built: BuiltModel, folder: Path, layout: str) -> None:
    """Check that the parameters mean the same in both runs."""
    if layout != built.model.layout.sha256:
        raise ScenarioError(f"the model of {folder} has other parameters: give the [model] and [data] that it has")
    before = Scenario.from_toml((folder / SCENARIO).read_text(encoding="utf-8"), origin=str(folder / SCENARIO))
    now = built.scenario
    if now.model.adapter != "none":
        differing = [name for name in _OF_ADAPTERS if getattr(before.model, name) != getattr(now.model, name)]
        if now.model.path is None and before.federation.seed != now.federation.seed:
            differing.append("seed")
        if differing:
            raise ScenarioError(f"the adapters of {folder} are of another model: its {differing[0]} is another one")
    earlier = json.loads((folder / MODEL / TASK_FILE).read_text(encoding="utf-8"))
    task = json.loads(built.task.to_json())
    if changed := [name for name in ("kind", "labels", "table", "vocab_size") if earlier[name] != task[name]]:
        raise ScenarioError(f"the model of {folder} is for another task: its {changed[0]} is another one")
