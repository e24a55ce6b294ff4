"""A scenario made into a run of real sites: the model and all that the server's process and the nodes must know."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedglm.autoglm.models.build import build_model, save_release
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.site_data import task_of
from fedglm.autoglm.tasks import Task
from fedglm.client.node import FederatedModel
from fedglm.core.files import storage_errors, write_atomically
from fedglm.privacy.accounting.accountant import usual_delta
from fedglm.privacy.accounting.statement import Statement
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.run_plan import TERMS, SignedPlan
from fedglm.protocol.recipe import Recipe
from fedglm.run_folder.names import CHECKPOINTS, RUN
from fedglm.scenarios.noise_plan import PlannedNoise, calibrated_noise, statements
from fedglm.scenarios.references import usable_reference
from fedglm.scenarios.scenario import Scenario, ScenarioError
from fedglm.server.aggregation.central_dp import ClientPrivacySettings
from fedglm.server.deployment.run_file import RunFile
from fedglm.server.deployment.run_reference import save_reference
from fedglm.server.rounds.checkpoint import load_latest

SCENARIO = "scenario.toml"


@dataclass(frozen=True)
class BuiltModel:
    """The model of a scenario, without any site's data.

    Attributes:
        scenario: What it was made from.
        task: What is learned.
        bench: The model, and its version 0.
    """

    scenario: Scenario
    task: Task
    bench: FederatedModel


def make(scenario: Scenario) -> BuiltModel:
    """Build the model of a federation whose records are elsewhere.

    Raises:
        DataError, ModelError: Something would have to be learned from rows, or the model cannot be built.
    """
    torch.set_num_threads(1)
    task = task_of(scenario.data, scenario.model)
    model = build_model(scenario.model, task, seed=scenario.federation.seed)
    return BuiltModel(scenario, task, FederatedModel(model, task, scenario.downlink))


def prepare(made: BuiltModel, folder: Path, sites: int) -> RunFile:
    """Write a run's folder, once: `run.json`, version 0 and the scenario.

    Args:
        made: The model.
        folder: New.
        sites: How many are enrolled.

    Raises:
        ScenarioError: The scenario lacks what a run of real sites must be told.
        PrivacyError: No noise keeps to so little epsilon.
        DataError: The reference records cannot be used.
        StorageError: A file cannot be written.
    """
    scenario, bench = made.scenario, made.bench
    if scenario.federation.nodes not in (None, sites):
        raise ScenarioError(
            f"federation.nodes is {scenario.federation.nodes}, and {sites} sites are enrolled: take the key away, or "
            "enrol the others"
        )
    run = _run_file(made)
    reference = usable_reference(scenario, made.task)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SCENARIO, scenario.to_toml())
    if reference is not None:
        seed = scenario.federation.seed
        digest = save_reference(folder, reference, model=scenario.model, data=scenario.data, seed=seed)
        run = run.model_copy(update={"reference_sha256": digest})
    run.save(folder, bench.initial)
    return run


def terms(made: BuiltModel, key: SigningKey) -> SignedPlan:
    """The plan of such runs before there is any, for sites to look at: its terms are those of the runs.

    Args:
        made: The model.
        key: The server's, which signs plans.

    Raises:
        ScenarioError, PrivacyError: As `prepare`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # Noise of the server's is no part of a plan, and needs to know how many sites there are.
        run = _run_file(made).model_copy(update={"client_privacy": ClientPrivacySettings()})
        run.save(folder, made.bench.initial)
        return RunFile.load(folder).plan(folder, key=key, sites={}).signed(TERMS)


def _run_file(made: BuiltModel) -> RunFile:
    scenario, bench = made.scenario, made.bench
    noise = _noise(scenario)
    recipe = Recipe.of(
        seed=scenario.federation.seed,
        weighting=scenario.federation.weighting,
        model=scenario.model,
        data=scenario.data,
        training=scenario.training,
        update=scenario.update,
        downlink=scenario.downlink,
    )
    initial = np.ascontiguousarray(bench.initial, "<f4")
    return RunFile(
        federation=_only(scenario.federation, RunFile, "federation"),
        optimizer=_only(scenario.training, RunFile, "optimizer"),
        codec=scenario.update.codec,
        density=scenario.update.effective_density,
        local_steps=scenario.training.local_steps,
        mechanism=noise.mechanism.to_fields() if noise.mechanism else None,
        turns=noise.turns,
        noise_at_most=noise.noise_at_most,
        metrics=noise.metrics.to_fields() if noise.metrics else None,
        downlink=scenario.downlink,
        client_privacy=scenario.client_privacy,
        learning_rate=scenario.training.learning_rate,
        names=bench.layout.names,
        shapes=bench.layout.shapes,
        initial_sha256=hashlib.sha256(initial.tobytes()).hexdigest(),
        reference_sha256=None,
        metric=made.task.metric,
        recipe=recipe.to_toml(),
    )


def is_prepared(folder: Path) -> bool:
    """Whether `prepare` has been through."""
    return (folder / RUN).is_file()


def release(made: BuiltModel, folder: Path, target: Path) -> None:
    """Save the model of a finished run.

    Raises:
        CheckpointError: The run left none that can be read.
    """
    found = load_latest(folder / CHECKPOINTS)
    if found is None:
        raise ScenarioError(f"{folder} holds no checkpoint: the run has not begun")
    load_vector(made.bench.model, found.versions["vector"])
    with storage_errors(target):
        save_release(made.bench.model, made.task, target)


def stated(scenario: Scenario, sites: int) -> list[Statement]:
    """What the run may say of its privacy."""
    return statements(scenario, None if scenario.privacy.epsilon is None else _delta(scenario), sites)


def _noise(scenario: Scenario) -> PlannedNoise:
    # Who is away decides who is drawn, so that nobody can count the turns of a node beforehand.
    turns = scenario.federation.rounds
    if scenario.privacy.epsilon is None:
        return PlannedNoise(turns)
    return calibrated_noise(scenario, turns, _units(scenario), _delta(scenario))


def _delta(scenario: Scenario) -> float:
    return usual_delta(_units(scenario)) if scenario.privacy.delta is None else scenario.privacy.delta


def _units(scenario: Scenario) -> int:
    if scenario.privacy.units is None:
        raise ScenarioError(
            "privacy.units is missing: noise is planned from the number of units that a site declares, the smallest "
            "one's where they differ; or train without, by --no-dp"
        )
    return scenario.privacy.units


def _only(section: Any, model: type[RunFile], field: str) -> Any:
    """What of a section the run file's field knows: a scenario's sections may hold more."""
    kind = model.model_fields[field].annotation
    return kind(**section.model_dump(include=set(kind.model_fields)))  # type: ignore[union-attr, misc]
