"""The Flower app of this repository: `flwr run` simulates a scenario, or continues a run of real sites.

    flwr run . --stream --run-config 'scenario="hospital" settings="federation.rounds=3 training.local_steps=10"'
    flwr run . fedglm --run-config 'run="first"'

The first takes as many nodes as Flower simulates (`--federation-config "num-supernodes=4"`), and writes its run folder
to `~/fedglm-runs`. The second continues a run that `fedglm run` has prepared, on the SuperLink of a project, whose
folder `flwr/` FLWR_HOME must name. Sites run the code that is installed there, whatever the bundle holds.
"""

import logging
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from fedglm.client.supernode.one_answer import make_single_handler_app
from fedglm.run_folder.names import REPORT
from fedglm.scenarios.scenario import Scenario, ScenarioError, parse_setting, scenario_text
from fedglm.server.project.folder import PROJECT
from fedglm.server.run_setup import Row
from fedglm.simulations.callbacks import SimulationCallbacks

LOG = logging.getLogger("flwr")

_PARTITION, _PARTITIONS = "partition-id", "num-partitions"
_SETTLED_S = 2.0  # Flower starts a ServerApp while it still registers the nodes

server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Simulate, or serve a run of real sites."""
    if os.environ.get(PROJECT):
        from fedglm.server.deployment import server_app

        server_app.app(grid, context)
        return
    from fedglm.simulations.simulate import run_scenario

    scenario = _load_scenario(context, _count_nodes(grid))
    folder = _run_folder(context, scenario)
    summary = run_scenario(scenario, folder, engine=grid, callbacks=_Log())
    LOG.info("model %s; report: %s", summary["model_sha256"][:16], folder / REPORT)


def _answer(message: Message, context: Context) -> Message:
    if _PARTITIONS not in context.node_config:
        from fedglm.client.supernode import client_app

        return client_app.app(message, context)
    from fedglm.run_folder.folder import RunFolder
    from fedglm.simulations.nodes import SimulatedNodes, make_app

    scenario = _load_scenario(context, int(context.node_config[_PARTITIONS]))
    nodes = SimulatedNodes(scenario.to_toml(), RunFolder(_run_folder(context, scenario)).nodes)
    return make_app(nodes)(message, context)


def _load_scenario(context: Context, nodes: int) -> Scenario:
    """Load the scenario that the run's configuration names, the same at server and nodes."""
    config = context.run_config
    return _read_scenario(str(config.get("scenario") or "hospital"), str(config.get("settings") or ""), nodes)


@lru_cache(maxsize=1)
def _read_scenario(name: str, settings: str, nodes: int) -> Scenario:
    text, origin = scenario_text(name), f"scenario {name}"
    changes: dict[str, Any] = dict(map(parse_setting, settings.split()))
    scenario = Scenario.from_toml(text, changes, origin=origin)
    if scenario.data.site_field is not None and scenario.data.split in ("auto", "site"):
        return scenario  # it has as many nodes as the data have sites
    return Scenario.from_toml(text, {"federation.nodes": nodes, **changes}, origin=origin)


def _run_folder(context: Context, scenario: Scenario) -> Path:
    return Path.home() / "fedglm-runs" / f"{scenario.name}-{context.run_id}"


def _count_nodes(grid: Grid) -> int:
    """Count the nodes, once their number has not changed for a while."""
    count, since = 0, time.monotonic()
    while time.monotonic() - since < _SETTLED_S or not count:
        if (now := len(list(grid.get_node_ids()))) != count:
            count, since = now, time.monotonic()
        if not count and time.monotonic() - since > 60:
            raise ScenarioError("Flower has made no node ready within a minute")
        time.sleep(0.05)
    return count


class _Log(SimulationCallbacks):
    """Logs the steps of a simulation to Flower's logger."""

    def prepared(self, about: dict[str, Any]) -> None:
        LOG.info("%s: %d nodes, %d parameters", about["scenario"], about["nodes"], about["parameters"])

    def plan_refused(self, node_id: int, reason: str) -> None:
        LOG.warning("node %d refuses: %s", node_id, reason)

    def rejected(self, node_id: int, reason: str) -> None:
        LOG.warning("node %d is turned away: %s", node_id, reason)

    def reply_taken(self, server_round: int, node: str, fault: str | None) -> None:
        if fault is not None:
            LOG.warning("round %d, %s: %s", server_round, node, fault)

    def round_done(self, rows: list[Row]) -> None:
        LOG.info("round %d: loss %s", len(rows), rows[-1]["loss"])


client = make_single_handler_app(_answer)
