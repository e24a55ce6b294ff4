"""Baselines of a federation: each site training alone, and one model trained on all data pooled.

A baseline starts from the same weights and trains with the same optimizer and the same schedule over as many rounds.
A site alone takes as many steps as a node; the pooled model takes as many as all nodes of a round together. They run in
worker processes as the nodes do, one baseline per Flower node: partition 0 is the pooled model, partition i site i - 1.
"""

import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Protocol

import torch
from flwr.app import Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fedglm.autoglm.data.examples import concatenate
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.training.local import TrainingError, round_seed, train_locally
from fedglm.autoglm.training.precision import choose_precision, torch_device
from fedglm.scenarios.stage import BuiltScenario, build_scenario
from fedglm.server.rounds.exchange import Exchange
from fedglm.simulations.engines.inline_grid import InlineGrid
from fedglm.simulations.evaluation import Evaluator


class BaselineCallbacks(Protocol):
    """Callbacks during the training of the baselines."""

    def baseline_started(self, jobs: int) -> None:
        """Training of `jobs` baselines begins."""

    def baseline_done(self) -> None:
        """A baseline is trained and evaluated."""


@dataclass(frozen=True)
class Baselines:
    """Evaluations of the baselines on the same held-out data as the federated model.

    Attributes:
        pooled: Evaluation of one model trained on all data; None if it was not requested.
        alone: Evaluation of each site's own model on its own held-out data, by site; empty if not requested.
    """

    pooled: Evaluation | None
    alone: dict[str, Evaluation]


def train_baselines(
    stage: BuiltScenario, workers: int | None, callbacks: BaselineCallbacks, stop: threading.Event
) -> Baselines:
    """Train and evaluate the baselines that the scenario requests.

    Args:
        stage: The built scenario.
        workers: Number of worker processes; None takes one per core.
        callbacks: Called at each step.
        stop: Event that ends the training early.

    Raises:
        TrainingError: A baseline could not be trained.
    """
    wanted = stage.scenario.evaluation.baselines
    names = [site.name for site in stage.data.sites]
    jobs = ([0] if "pooled" in wanted else []) + (list(range(1, len(names) + 1)) if "alone" in wanted else [])
    if not jobs:
        return Baselines(None, {})
    callbacks.baseline_started(len(jobs))
    results: dict[int, Evaluation] = {}
    factory = partial(make_app, stage.scenario.to_toml())
    with InlineGrid(factory, nodes=len(names) + 1, workers=min(len(jobs), workers) if workers else None) as grid:
        exchange = Exchange(grid, stop)
        exchange.send(((job + 1, RecordDict()) for job in jobs), "train", 0)
        for job, result in _read_results(exchange):
            results[job] = result
            callbacks.baseline_done()
    return Baselines(results.get(0), {names[job - 1]: result for job, result in sorted(results.items()) if job > 0})


def _read_results(exchange: Exchange) -> Iterator[tuple[int, Evaluation]]:
    for node_id, reply in exchange.replies(timeout_s=float("inf")):
        if reply.has_error():
            raise TrainingError(f"a baseline could not be trained: {reply.error.reason}")
        measures: dict[str, Any] = dict(reply.content.metric_records["measures"])
        yield node_id - 1, Evaluation(**measures)


def make_app(scenario_toml: str) -> ClientApp:
    """Make the ClientApp that trains the baseline of its partition."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        try:
            measured = _train(build_scenario(scenario_toml), int(context.node_config["partition-id"]))
        except TrainingError as exc:
            return Message(Error(int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), str(exc)), reply_to=message)
        return Message(RecordDict({"measures": MetricRecord(asdict(measured))}), reply_to=message)

    return app


def _train(stage: BuiltScenario, job: int) -> Evaluation:
    """Train the pooled model (job 0) or that of site job - 1, and evaluate it."""
    scenario, model = stage.scenario, stage.model
    federation, training = scenario.federation, scenario.training
    sites = stage.data.sites
    pooled = job == 0
    examples = concatenate([site.train for site in sites]) if pooled else sites[job - 1].train
    share = federation.cohort_size(len(sites)) if pooled else 1
    precision = choose_precision(training.precision, model.layout.size, torch_device(training.device))
    vector = model.initial
    for number in range(1, federation.rounds + 1):
        result = train_locally(
            model.module,
            model.task.sequence_losses,
            examples,
            vector,
            training,
            precision,
            learning_rate=training.learning_rate * training.rate_at(number, federation.rounds),
            seed=round_seed(federation.seed, f"baseline-{job}", number),
            steps=training.local_steps * share,
        )
        vector = vector + result.delta
    evaluator = Evaluator(stage.data, model, scenario.evaluation.sequences)
    return evaluator.evaluate_all(vector) if pooled else evaluator.evaluate_site(sites[job - 1].name, vector)
