"""A simulated federation, from its scenario to its run folder."""

import math
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from fedglm.autoglm.light.run_release.maker import LightMaker, check_possible
from fedglm.autoglm.light.run_release.outcome import LightOutcome
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.models.release import save_release
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.training.precision import choose_precision, torch_device
from fedglm.core.files import storage_errors
from fedglm.privacy.accounting.statement import make_summary_fields
from fedglm.privacy.custody.store import FOLDER, LEDGER
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.signed_log import LOG
from fedglm.reports.run.write import write_report
from fedglm.run_folder.folder import RunFolder
from fedglm.run_folder.names import LIGHT_RECORD, REPORT
from fedglm.run_folder.rows import total_bytes
from fedglm.scenarios.noise_plan import (
    delta_of,
    establish_site,
    max_epsilon,
    plan_noise,
    run_spec,
    server_key,
    state_guarantees,
    unit_of,
)
from fedglm.scenarios.references import reference_losses
from fedglm.scenarios.scenario import Scenario
from fedglm.scenarios.stage import BuiltScenario, build_scenario
from fedglm.scenarios.summary_fields import describe_coding, list_versions
from fedglm.server.aggregation.central_dp import plan_client_privacy
from fedglm.server.app import build_server_app
from fedglm.server.coordinator import Coordinator
from fedglm.server.rounds.participants import FederationError
from fedglm.server.run_setup import Plan, PresenceState, Row
from fedglm.simulations.baselines import Baselines, train_baselines
from fedglm.simulations.callbacks import SimulationCallbacks
from fedglm.simulations.engines.inline_grid import prepare_workers
from fedglm.simulations.engines.run import Engine, run_engine
from fedglm.simulations.evaluation import Evaluator
from fedglm.simulations.nodes import SimulatedNodes, make_folder_name

Summary = dict[str, Any]


def run_scenario(
    scenario: Scenario,
    folder: Path,
    *,
    engine: Engine | Grid,
    callbacks: SimulationCallbacks,
    resume: bool = False,
    workers: int | None = None,
) -> Summary:
    """Run a federation and write its run folder.

    Args:
        scenario: The scenario to run.
        folder: The run folder.
        engine: Name of the engine, or a grid whose nodes were made for the same scenario and folder; the result has the
            same bits on each.
        callbacks: Called at each step.
        resume: Continue in a folder that an earlier process began.
        workers: Number of worker processes; None takes one per core.

    Returns:
        The content of `summary.json`.

    Raises:
        ScenarioError, DataError, ModelError, RunFolderError: The run cannot start.
        FederationError: The run cannot continue.
        StorageError: A file could not be written; once there is room, `resume` continues the run.
    """
    started = time.monotonic()
    text = scenario.to_toml()
    run = RunFolder(folder)
    with run.claimed(text, resume=resume):
        if (done := run.summary()) is not None:
            if not (folder / REPORT).is_file():  # the run was killed, or the disk was full, at the very end
                write_report(folder)
            return done
        if scenario.model.light is not None:
            check_possible(scenario.model.light, scenario.data)
        prepare_workers()
        torch.set_num_threads(1)  # evaluations, too, must not depend on the number of cores
        stage = build_scenario(text)
        about = _describe_run(stage, engine)
        run.begin(text)
        callbacks.prepared(about)
        coordinator, initial, evaluator = _run(stage, run, engine, callbacks, resume=resume, workers=workers)
        load_vector(stage.model.module, coordinator.vector)
        with storage_errors(run.model):
            save_release(stage.model.module, stage.data.task, run.model)
        baselines = train_baselines(stage, workers, callbacks, threading.Event())
        sites = evaluator.evaluate_sites(coordinator.vector)
        summary = about | _summarize(stage, coordinator, initial, sites, baselines)
        earlier = sum(row["wall_s"] for row in coordinator.rows)
        summary["light"] = _describe_light(scenario, folder)
        summary["wall_s"] = round(max(time.monotonic() - started, earlier), 1)
        run.write_summary(summary)
        write_report(folder)
    return summary


def _run(
    stage: BuiltScenario,
    run: RunFolder,
    engine: Engine | Grid,
    callbacks: SimulationCallbacks,
    *,
    resume: bool,
    workers: int | None,
) -> tuple[Coordinator, Evaluation, Evaluator]:
    scenario, model = stage.scenario, stage.model
    evaluator = Evaluator(stage.data, model, scenario.evaluation.sequences)
    initial = evaluator.evaluate_all(model.initial)
    key = server_key(run.server_key)
    client_privacy = plan_client_privacy(scenario.client_privacy, scenario.federation, len(stage.data.sites))
    delta = delta_of(scenario, stage.data.sites)
    planned = plan_noise(scenario, stage.data.sites, delta)
    custodies = [run.nodes.absolute() / make_folder_name(site.name) / FOLDER for site in stage.data.sites]
    for site, folder in zip(stage.data.sites, custodies, strict=True):
        establish_site(folder, scenario, site, key=key, layout=model.layout, planned=planned, delta=delta)
    ledgers = [Ledger(folder / LEDGER) for folder in custodies]  # each row is verified once
    plan = Plan(
        federation=scenario.federation,
        optimizer=scenario.training,
        spec=run_spec(scenario, planned),
        key=key,
        epsilon=lambda: None if planned.mechanism is None else max_epsilon(ledgers, delta),
        downlink=scenario.downlink,
        learning_rate=scenario.training.learning_rate,
        layout=model.layout,
        initial=model.initial,
        evaluate=evaluator.evaluate_all,
        reference=reference_losses(stage),
        metric=stage.data.task.metric,
        checkpoints=run.checkpoints,
        log=run.audit / LOG,
        client_privacy=client_privacy,
    )
    plan = replace(plan, light=_make_light_maker(stage, run, plan), light_every=scenario.model.light_every)
    finished: list[Coordinator] = []
    stop = threading.Event()
    app = build_server_app(
        plan, listener=_RowWriter(run, callbacks), stop=stop, resume=resume, finished=finished.append
    )
    nodes = SimulatedNodes(scenario.to_toml(), run.nodes.absolute())
    run_engine(engine, app, nodes, len(stage.data.sites), workers=workers, stop=stop)
    if not finished:
        raise FederationError(f"the engine {_name_engine(engine)} ended before the last round")
    run.write_rounds(finished[0].rows)
    return finished[0], initial, evaluator


def _make_light_maker(stage: BuiltScenario, run: RunFolder, plan: Plan) -> LightMaker | None:
    """Return what makes the run's light releases; None where it makes none."""
    scenario = stage.scenario
    if scenario.model.light is None:
        return None
    private = scenario.privacy.epsilon is not None
    known = {"scenario": scenario.name}
    delta = delta_of(scenario, stage.data.sites) if private else None

    def describe() -> Summary:
        if not private:
            return known
        return known | {"epsilon": plan.epsilon(), "delta": delta, "privacy_unit": unit_of(scenario)}

    return LightMaker(
        settings=scenario.model.light,
        build=lambda: (stage.model.module, stage.data.task),
        data=scenario.data,
        seed=scenario.federation.seed,
        folder=run.path,
        key=plan.key,
        describe=describe,
        next_version=lambda server_round: server_round,
    )


def _describe_light(scenario: Scenario, folder: Path) -> Summary | None:
    outcome = None if scenario.model.light is None else LightOutcome.load(folder / LIGHT_RECORD)
    return None if outcome is None else outcome.to_summary()


class _RowWriter:
    """Forwards all callbacks, and keeps `rounds.jsonl` up to date."""

    def __init__(self, run: RunFolder, callbacks: SimulationCallbacks) -> None:
        self._run, self._callbacks = run, callbacks

    def resumed(self, rows: list[Row]) -> None:
        self._run.write_rounds(rows)
        self._callbacks.resumed(rows)

    def round_started(self, server_round: int, sampled: int) -> None:
        self._callbacks.round_started(server_round, sampled)

    def sites_asked(self, server_round: int, sites: list[str]) -> None:
        """Simulated nodes are no enrolled sites; so are the next two."""

    def presence_changed(self, server_round: int, site: str, state: PresenceState, since: float) -> None:
        pass

    def site_revoked(self, server_round: int, site: str, reason: str) -> None:
        pass

    def plan_refused(self, node_id: int, reason: str, site: str | None = None) -> None:  # noqa: ARG002 - nobody signs here
        self._callbacks.plan_refused(node_id, reason)

    def rejected(self, node_id: int, reason: str, site: str | None = None) -> None:  # noqa: ARG002 - nobody signs here
        self._callbacks.rejected(node_id, reason)

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        self._callbacks.reply_taken(server_round, node, fault)

    def round_done(self, rows: list[Row]) -> None:
        self._run.write_rounds(rows)
        self._callbacks.round_done(rows)


def _name_engine(engine: Engine | Grid) -> str:
    return "flwr run" if isinstance(engine, Grid) else engine


def _describe_run(stage: BuiltScenario, engine: Engine | Grid) -> Summary:
    """Return the summary's fields that are known before the first round."""
    scenario, model = stage.scenario, stage.model
    training, private, client = scenario.training, scenario.privacy.epsilon is not None, scenario.client_privacy
    precision = choose_precision(training.precision, model.layout.size, torch_device(training.device), private=private)
    described, nodes = stage.data.describe(), len(stage.data.sites)
    delta = delta_of(scenario, stage.data.sites) if private else None
    return {
        "scenario": scenario.name,
        "seed": scenario.federation.seed,
        "rounds": scenario.federation.rounds,
        "nodes": nodes,
        "parameters": model.layout.size,
        **describe_coding(scenario),
        "metric": stage.data.task.metric,
        "engine": _name_engine(engine),
        "precision": precision.name,
        "precision_reason": precision.reason,
        "device": str(precision.device),
        **make_summary_fields(state_guarantees(scenario, delta, nodes)),
        "epsilon": None,
        "delta": delta,
        "client_epsilon": None,
        "client_delta": None if client.epsilon is None else client.compute_delta(nodes),
        "data": {key: value for key, value in described.items() if key != "sites"},
        "sites": described["sites"],
        "versions": list_versions(),
    }


def _summarize(
    stage: BuiltScenario,
    coordinator: Coordinator,
    initial: Evaluation,
    sites: dict[str, Evaluation],
    baselines: Baselines,
) -> Summary:
    """Return the summary's fields that are the result of the run."""
    task, rows = stage.data.task, coordinator.rows

    def named(measured: Evaluation | None) -> Summary | None:
        return None if measured is None else {"loss": measured.loss, task.metric: measured.metric}

    totals = total_bytes(rows)
    dense = totals["dense_uplink_bytes"] + totals["dense_downlink_bytes"]
    described = stage.data.describe()["sites"]
    final = task.pool(list(sites.values()))
    return {
        **(named(final) or {}),
        **totals,
        "uplink_ratio": _divide(totals["uplink_bytes"], totals["dense_uplink_bytes"]),
        "downlink_ratio": _divide(totals["downlink_bytes"], totals["dense_downlink_bytes"]),
        "roundtrip_ratio": _divide(totals["uplink_bytes"] + totals["downlink_bytes"], dense),
        "initial": named(initial),
        "sites": [
            {**site, **(named(sites[site["name"]]) or {}), "alone": named(baselines.alone.get(site["name"]))}
            for site in described
        ],
        "baselines": {
            "pooled": named(baselines.pooled),
            "alone": named(task.pool(list(baselines.alone.values()))) if baselines.alone else None,
        },
        "epsilon": max((row["epsilon"] for row in rows if row["epsilon"] is not None), default=None),
        **{name: rows[-1].get(name) for name in ("client_epsilon", "client_mechanism")},
        "updates": sum(row["nodes_accepted"] for row in rows),
        "updates_left_out": sum(share == 0 for row in rows for share in row.get("counted", {}).values()),
        "model_sha256": coordinator.model_sha256,
    }


def _divide(coded: int, dense: int) -> float:
    """Return coded / dense; NaN where nothing was sent, since no node was sampled or no update was accepted."""
    return coded / dense if dense else math.nan
