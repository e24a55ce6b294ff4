"""A simulated federation from its scenario to its run folder."""

import math
import platform
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid

from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.models.release import save_release
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.training.precision import choose_precision, torch_device
from fedglm.core.files import storage_errors
from fedglm.privacy.accounting.statement import summary_fields
from fedglm.privacy.custody.store import FOLDER, LEDGER
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.signed_log import LOG
from fedglm.reports.run.write import write_report
from fedglm.run_folder.folder import RunFolder
from fedglm.run_folder.names import REPORT
from fedglm.run_folder.rows import total_bytes
from fedglm.scenarios.noise_plan import (
    delta_of,
    establish_site,
    max_epsilon,
    plan_noise,
    run_spec,
    server_key,
    state_guarantees,
)
from fedglm.scenarios.references import reference_losses
from fedglm.scenarios.scenario import Scenario
from fedglm.scenarios.stage import BuiltScenario, build_scenario
from fedglm.server.aggregation.central_dp import plan_client_privacy
from fedglm.server.app import build_server_app
from fedglm.server.coordinator import Coordinator
from fedglm.server.rounds.participants import FederationError
from fedglm.server.run_setup import Plan, Row
from fedglm.simulations.baselines import Baselines, train_baselines
from fedglm.simulations.callbacks import SimulationCallbacks
from fedglm.simulations.engines.inline_grid import prepare_workers
from fedglm.simulations.engines.run import Engine, run_engine
from fedglm.simulations.evaluation import Evaluator
from fedglm.simulations.nodes import SimulatedNodes, folder_name

Summary = dict[str, Any]


def run_scenario(
    scenario: Scenario,
    folder: Path,
    *,
    engine: Engine | Grid,
    audience: SimulationCallbacks,
    resume: bool = False,
    workers: int | None = None,
) -> Summary:
    """Run a federation and leave its run folder.

    Args:
        scenario: What to run.
        folder: The run folder.
        engine: On what to run it; the result has the same bits on each. Nodes that are there already must have been
            made for the same scenario and folder.
        audience: Is told of each step.
        resume: Go on in a folder that an earlier process began.
        workers: Worker processes; one a core without it.

    Returns:
        What `summary.json` holds.

    Raises:
        ScenarioError, DataError, ModelError, RunFolderError: It cannot start.
        FederationError: It cannot go on.
        StorageError: A file could not be written; with more room, `resume` goes on.
    """
    started = time.monotonic()
    text = scenario.to_toml()
    run = RunFolder(folder)
    with run.claimed(text, resume=resume):
        if (done := run.summary()) is not None:
            if not (folder / REPORT).is_file():  # it was killed, or the disk was full, at the very end
                write_report(folder)
            return done
        prepare_workers()
        torch.set_num_threads(1)  # measures, too, must not depend on how many cores the machine has
        stage = build_scenario(text)
        about = _about(stage, engine)
        run.begin(text)
        audience.prepared(about)
        coordinator, initial, evaluator = _run(stage, run, engine, audience, resume=resume, workers=workers)
        load_vector(stage.model.module, coordinator.vector)
        with storage_errors(run.model):
            save_release(stage.model.module, stage.data.task, run.model)
        baselines = train_baselines(stage, workers, audience, threading.Event())
        sites = evaluator.by_site(coordinator.vector)
        summary = about | _results(stage, coordinator, initial, sites, baselines)
        earlier = sum(row["wall_s"] for row in coordinator.rows)
        summary["wall_s"] = round(max(time.monotonic() - started, earlier), 1)
        run.write_summary(summary)
        write_report(folder)
    return summary


def _run(
    stage: BuiltScenario,
    run: RunFolder,
    engine: Engine | Grid,
    audience: SimulationCallbacks,
    *,
    resume: bool,
    workers: int | None,
) -> tuple[Coordinator, Evaluation, Evaluator]:
    scenario, model = stage.scenario, stage.model
    evaluator = Evaluator(stage.data, model, scenario.evaluation.sequences)
    initial = evaluator.overall(model.initial)
    key = server_key(run.server_key)
    client_privacy = plan_client_privacy(scenario.client_privacy, scenario.federation, len(stage.data.sites))
    delta = delta_of(scenario, stage.data.sites)
    planned = plan_noise(scenario, stage.data.sites, delta)
    custodies = [run.nodes.absolute() / folder_name(site.name) / FOLDER for site in stage.data.sites]
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
        evaluate=evaluator.overall,
        reference=reference_losses(stage),
        metric=stage.data.task.metric,
        checkpoints=run.checkpoints,
        log=run.audit / LOG,
        client_privacy=client_privacy,
    )
    finished: list[Coordinator] = []
    stop = threading.Event()
    app = build_server_app(plan, listener=_RowWriter(run, audience), stop=stop, resume=resume, finished=finished.append)
    nodes = SimulatedNodes(scenario.to_toml(), run.nodes.absolute())
    run_engine(engine, app, nodes, len(stage.data.sites), workers=workers, stop=stop)
    if not finished:
        raise FederationError(f"the engine {_named(engine)} ended before the last round")
    run.write_rounds(finished[0].rows)
    return finished[0], initial, evaluator


class _RowWriter:
    """Passes everything on, and keeps `rounds.jsonl` up to date."""

    def __init__(self, run: RunFolder, audience: SimulationCallbacks) -> None:
        self._run, self._audience = run, audience

    def resumed(self, rows: list[Row]) -> None:
        self._run.write_rounds(rows)
        self._audience.resumed(rows)

    def round_started(self, server_round: int, sampled: int) -> None:
        self._audience.round_started(server_round, sampled)

    def plan_refused(self, node_id: int, reason: str) -> None:
        self._audience.plan_refused(node_id, reason)

    def rejected(self, node_id: int, reason: str) -> None:
        self._audience.rejected(node_id, reason)

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        self._audience.reply_taken(server_round, node, fault)

    def round_done(self, rows: list[Row]) -> None:
        self._run.write_rounds(rows)
        self._audience.round_done(rows)


def _named(engine: Engine | Grid) -> str:
    return "flwr run" if isinstance(engine, Grid) else engine


def _about(stage: BuiltScenario, engine: Engine | Grid) -> Summary:
    """What is known before the first round."""
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
        "codec": scenario.update.codec,
        "density": scenario.update.effective_density,
        "coding": scenario.update.in_words,
        "downlink_codec": scenario.downlink.codec,
        "downlink_density": scenario.downlink.effective_density,
        "downlink_coding": scenario.downlink.in_words,
        "metric": stage.data.task.metric,
        "engine": _named(engine),
        "precision": precision.name,
        "precision_reason": precision.reason,
        "device": str(precision.device),
        **summary_fields(state_guarantees(scenario, delta, nodes)),
        "epsilon": None,
        "delta": delta,
        "client_epsilon": None,
        "client_delta": None if client.epsilon is None else client.delta_of(nodes),
        "data": {key: value for key, value in described.items() if key != "sites"},
        "sites": described["sites"],
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("fedglm", "flwr", "torch", "transformers")},
        },
    }


def _results(
    stage: BuiltScenario,
    coordinator: Coordinator,
    initial: Evaluation,
    sites: dict[str, Evaluation],
    baselines: Baselines,
) -> Summary:
    """What the run came to."""
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
        "uplink_ratio": _ratio(totals["uplink_bytes"], totals["dense_uplink_bytes"]),
        "downlink_ratio": _ratio(totals["downlink_bytes"], totals["dense_downlink_bytes"]),
        "roundtrip_ratio": _ratio(totals["uplink_bytes"] + totals["downlink_bytes"], dense),
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


def _ratio(coded: int, dense: int) -> float:
    """NaN where no secret sample had a node in it, or no update was good, so that nothing travelled."""
    return coded / dense if dense else math.nan
