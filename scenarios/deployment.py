"""Preparation of a deployed run from a scenario: its model, and the files for the server's process and the nodes."""

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedglm.autoglm.light.public_text import AUTO
from fedglm.autoglm.light.public_text import MODEL as MODEL_MADE
from fedglm.autoglm.light.run_release.maker import check_possible
from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.models.release import save_release
from fedglm.autoglm.site_data import make_public_task
from fedglm.autoglm.tasks.task import Task
from fedglm.core.files import storage_errors, write_atomically
from fedglm.privacy.accounting.accountant import choose_default_delta
from fedglm.privacy.accounting.statement import Statement
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.run_plan import TERMS, SignedPlan
from fedglm.privacy.policy.run_spec import NoisePlan
from fedglm.protocol.federated_model import FederatedModel
from fedglm.protocol.recipe import Recipe
from fedglm.run_folder.names import CHECKPOINTS, RUN, SCENARIO
from fedglm.scenarios.held_out import load_held_out
from fedglm.scenarios.noise_plan import calibrate_noise, run_spec, state_guarantees, unit_of
from fedglm.scenarios.references import usable_reference
from fedglm.scenarios.scenario import Scenario, ScenarioError
from fedglm.server.deployment.run_evaluation import save_evaluation
from fedglm.server.deployment.run_file import RunFile
from fedglm.server.deployment.run_light import LightRun
from fedglm.server.deployment.run_reference import save_reference
from fedglm.server.rounds.checkpoint import load_latest
from fedglm.server.settings import ClientPrivacySettings


@dataclass(frozen=True)
class BuiltModel:
    """The model of a scenario, without any site's data.

    Attributes:
        scenario: Scenario that it was built from.
        task: Learning task.
        model: Model with version 0 of its parameters.
    """

    scenario: Scenario
    task: Task
    model: FederatedModel


def build_deployed_model(scenario: Scenario) -> BuiltModel:
    """Build the model of a federation whose records are not on this machine.

    Raises:
        DataError, ModelError: The task depends on the records, or the model cannot be built.
    """
    torch.set_num_threads(1)
    task = make_public_task(scenario.data, scenario.model)
    model = build_model(scenario.model, task, seed=scenario.federation.seed)
    return BuiltModel(scenario, task, FederatedModel(model, task, scenario.downlink))


def prepare(built: BuiltModel, folder: Path, sites: int) -> RunFile:
    """Create a run's folder with `run.json`, version 0 of the model and the scenario.

    Args:
        built: Model of the scenario.
        folder: Folder to create.
        sites: Number of enrolled sites.

    Returns:
        The contents of `run.json`.

    Raises:
        ScenarioError: The scenario lacks a setting that a deployed run needs, or its number of nodes is another one.
        PrivacyError: No noise multiplier keeps the run within so small an epsilon.
        DataError: The reference records or the server's held-out records cannot be used.
        LightenError: What makes light releases is not installed.
        StorageError: A file cannot be written.
    """
    scenario, model = built.scenario, built.model
    if scenario.federation.nodes not in (None, sites):
        raise ScenarioError(
            f"federation.nodes is {scenario.federation.nodes}, and {sites} sites are enrolled: take the key away, or "
            "enrol the others"
        )
    if scenario.model.light is not None:
        check_possible(scenario.model.light, scenario.data)
    run = _run_file(built)
    reference, held_out = usable_reference(scenario, built.task), load_held_out(scenario, built.task, sites)
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SCENARIO, scenario.to_toml())
    seed = scenario.federation.seed
    if reference is not None:
        digest = save_reference(folder, reference, model=scenario.model, data=scenario.data, seed=seed)
        run = run.model_copy(update={"reference_sha256": digest})
    if held_out is not None:
        digest = save_evaluation(folder, held_out, model=scenario.model, data=scenario.data, seed=seed)
        run = run.model_copy(update={"evaluation_sha256": digest})
    run.save(folder, model.initial)
    return run


def sign_terms(built: BuiltModel, key: SigningKey) -> SignedPlan:
    """Sign a plan with the terms of such runs before there is one, for sites to inspect.

    Args:
        built: Model of the scenario.
        key: The server's signing key.

    Raises:
        ScenarioError, PrivacyError: As for `prepare`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        # Noise that the server adds is no part of a plan, and depends on the number of sites, unknown here.
        run = _run_file(built).model_copy(update={"client_privacy": ClientPrivacySettings()})
        run.save(folder, built.model.initial)
        return RunFile.load(folder).plan(folder, key=key, sites={}).sign(TERMS)


def _run_file(built: BuiltModel) -> RunFile:
    scenario, model = built.scenario, built.model
    recipe = Recipe.of(
        seed=scenario.federation.seed,
        weighting=scenario.federation.weighting,
        model=scenario.model,
        data=scenario.data,
        training=scenario.training,
        update=scenario.update,
        downlink=scenario.downlink,
    )
    initial = np.ascontiguousarray(model.initial, "<f4")
    return RunFile(
        federation=_restrict(scenario.federation, RunFile, "federation"),
        optimizer=_restrict(scenario.training, RunFile, "optimizer"),
        spec=run_spec(scenario, _plan_noise(scenario), recipe.to_toml()),
        downlink=scenario.downlink,
        client_privacy=scenario.client_privacy,
        learning_rate=scenario.training.learning_rate,
        names=model.layout.names,
        shapes=model.layout.shapes,
        initial_sha256=hashlib.sha256(initial.tobytes()).hexdigest(),
        reference_sha256=None,
        metric=built.task.metric,
        light=_plan_light(scenario),
        guarantee=None if scenario.privacy.epsilon is None else (scenario.privacy.epsilon, choose_delta(scenario)),
    )


def _plan_light(scenario: Scenario) -> LightRun | None:
    """Say what light releases are made of, if any; a file of public text is found wherever the server runs."""
    light, private = scenario.model.light, scenario.privacy.epsilon is not None
    if light is None:
        return None
    if light.text not in (AUTO, MODEL_MADE):
        light = light.model_copy(update={"text": str(Path(light.text).expanduser().absolute())})
    return LightRun(
        scenario=scenario.name,
        model=scenario.model.model_copy(update={"light": light}),
        data=scenario.data,
        seed=scenario.federation.seed,
        epsilon=scenario.privacy.epsilon,
        delta=choose_delta(scenario) if private else None,
        unit=unit_of(scenario) if private else None,
    )


def is_prepared(folder: Path) -> bool:
    """Return whether `prepare` has completed in this folder."""
    return (folder / RUN).is_file()


def save_final_model(built: BuiltModel, folder: Path, target: Path) -> None:
    """Save the model of a finished run, as transformers does.

    Args:
        built: Model of the scenario; its parameters are overwritten.
        folder: Folder of the run.
        target: Folder for the model.

    Raises:
        CheckpointError: No checkpoint can be read.
        ScenarioError: There is no checkpoint.
        StorageError: The model cannot be written.
    """
    checkpoint = load_latest(folder / CHECKPOINTS)
    if checkpoint is None:
        raise ScenarioError(f"{folder} holds no checkpoint: the run has not begun")
    load_vector(built.model.module, checkpoint.versions["vector"])
    with storage_errors(target):
        save_release(built.model.module, built.task, target)


def state_run_guarantees(scenario: Scenario, sites: int) -> list[Statement]:
    """State the privacy guarantees of a run with this number of enrolled sites."""
    return state_guarantees(scenario, None if scenario.privacy.epsilon is None else choose_delta(scenario), sites)


def _plan_noise(scenario: Scenario) -> NoisePlan:
    # Which nodes are sampled depends on which are online, so how often one takes part is not known beforehand.
    rounds = scenario.federation.rounds
    if scenario.privacy.epsilon is None:
        return NoisePlan(max_participations=rounds)
    return calibrate_noise(scenario, rounds, _read_units(scenario), choose_delta(scenario))


def choose_delta(scenario: Scenario) -> float:
    """Return the delta of a run with noise.

    Raises:
        ScenarioError: `privacy.units` is missing.
    """
    return choose_default_delta(_read_units(scenario)) if scenario.privacy.delta is None else scenario.privacy.delta


def _read_units(scenario: Scenario) -> int:
    if scenario.privacy.units is None:
        raise ScenarioError(
            "privacy.units is missing: noise is planned from the number of units that a site declares, the smallest "
            "one's where they differ; or train without, by --no-dp"
        )
    return scenario.privacy.units


def _restrict(section: Any, model: type[RunFile], field: str) -> Any:
    """Restrict a scenario's section to the settings that the run file's field has."""
    kind = model.model_fields[field].annotation
    return kind(**section.model_dump(include=set(kind.model_fields)))  # type: ignore[union-attr, misc]
