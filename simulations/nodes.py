"""The nodes of a simulation: the site behind a Flower context, in any worker process.

A worker process builds the data and the model once, from the scenario alone, and then runs one node after the other. A
node's state is in its folder, so any worker can run it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import quote

import torch
from flwr.app import Context
from flwr.clientapp import ClientApp

from fedglm.client.app import NodeContext, build_client_app
from fedglm.client.gate import OutboundGate
from fedglm.client.node import Node
from fedglm.privacy.custody.store import FOLDER, Custody
from fedglm.privacy.ledger.commitment import Field
from fedglm.scenarios.noise_plan import declared_examples, unit_of
from fedglm.scenarios.stage import build_scenario


@dataclass(frozen=True)
class SimulatedNodes:
    """Builds the node behind a Flower context; small enough to be sent to any worker.

    Args:
        scenario_toml: The complete scenario as TOML.
        folder: Folder of the nodes' folders.
    """

    scenario_toml: str
    folder: Path

    def __call__(self, context: Context) -> NodeContext:
        """Build the node context of the context's partition."""
        # Sums in other orders give other bits: one thread per node, whatever the machine has.
        torch.set_num_threads(1)
        stage = build_scenario(self.scenario_toml)
        scenario = stage.scenario
        partition = int(context.node_config["partition-id"])
        site = stage.data.sites[partition]
        home = self.folder / make_folder_name(site.name)
        gate = OutboundGate(_open_custody(home / FOLDER, self.scenario_toml, partition), home)

        def node() -> Node:
            return Node(
                site.name,
                stage.model,
                train=site.train,
                held_out=site.held_out,
                training=scenario.training,
                update=scenario.update,
                folder=home,
                seed=scenario.federation.seed,
                declared=declared_examples(scenario, site),
                envelope=gate.envelope,
            )

        return NodeContext(gate, node)


@cache
def _open_custody(folder: Path, scenario_toml: str, partition: int) -> Custody:
    """Open a site's policy and ledger; hashing its records takes time, so once per process."""
    stage = build_scenario(scenario_toml)
    train = stage.data.sites[partition].train
    fields = (train.input_ids, train.lengths, train.labels, train.units)

    def parts() -> Iterator[tuple[Field, ...]]:
        records = zip(*(tensor.numpy() for tensor in fields), strict=True)
        return ((tokens[:length], int(label), int(unit)) for tokens, length, label, unit in records)

    return Custody.open(folder, parts, unit=unit_of(stage.scenario))


def make_folder_name(name: str) -> str:
    """Return a node's name as a folder name: names come from the data and may hold slashes, dots, anything."""
    quoted = quote(name, safe=" ").replace(".", "%2E")
    if len(quoted) <= 100:
        return quoted
    return f"{quoted[:80]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def make_app(nodes: SimulatedNodes) -> ClientApp:
    """Make the ClientApp of simulated nodes."""
    return build_client_app(nodes, verbose_errors=True)  # the server is this machine too
