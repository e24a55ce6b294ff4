"""A Flower app as one would write it by hand: the same model trains on the same records, with nothing else of fedglm.

Dense float32 arrays both ways, Flower's own FedAvg; no codec, ledger, policy, signature, checkpoint.
`round_overhead.py` runs it on the same SuperLink and SuperNodes.
"""

import json
import time
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.models.parameters import to_vector
from fedglm.autoglm.site_data import load_site, make_public_task
from fedglm.autoglm.training.local import train_locally
from fedglm.autoglm.training.precision import choose_precision
from fedglm.scenarios.scenario import Scenario, scenario_text

client = ClientApp()
server = ServerApp()


@lru_cache
def _scenario(name: str) -> Scenario:
    return Scenario.from_toml(scenario_text(name))


@client.train()
def train(message: Message, context: Context) -> Message:
    """A round's steps."""
    torch.set_num_threads(1)
    scenario = _scenario(str(context.run_config["scenario"]))
    share = int(context.node_config["part"]), int(context.node_config["parts"])
    task, site = load_site(scenario.data, name="bare", share=share, seed=7, model=scenario.model)
    model = build_model(scenario.model, task, seed=7)
    base = message.content.array_records["arrays"]["weights"].numpy()
    precision = choose_precision("auto", base.size, torch.device("cpu"))
    rate = scenario.training.learning_rate
    losses = task.sequence_losses
    done = train_locally(model, losses, site.train, base, scenario.training, precision, learning_rate=rate, seed=7)
    content = RecordDict(
        {
            "arrays": ArrayRecord({"weights": Array((base + done.delta).astype(np.float32))}),
            "said": MetricRecord({"loss": done.loss, "num-examples": len(site.train)}),
        }
    )
    return Message(content, reply_to=message)


class Timed(FedAvg):
    """FedAvg that writes down when each round ended."""

    def __init__(self, path: Path) -> None:
        super().__init__(fraction_evaluate=0.0, min_available_nodes=2)
        self._path, self._times = path, [time.time()]

    def aggregate_train(self, server_round, replies):  # type: ignore[no-untyped-def]
        """Aggregate, and note the time."""
        found = super().aggregate_train(server_round, replies)
        self._times.append(time.time())
        self._path.write_text(json.dumps(self._times))
        return found


@server.main()
def main(grid: Grid, context: Context) -> None:
    """All rounds."""
    scenario = _scenario(str(context.run_config["scenario"]))
    model = build_model(scenario.model, make_public_task(scenario.data, scenario.model), seed=7)
    Timed(Path(str(context.run_config["times"]))).start(
        grid=grid,
        initial_arrays=ArrayRecord({"weights": Array(to_vector(model))}),
        num_rounds=int(context.run_config["rounds"]),
        timeout=600,
    )
