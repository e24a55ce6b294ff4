"""Engines of a simulated federation. All run the same ServerApp and the same ClientApp, to the same bits.

inline   worker processes of this machine; starts in a second or two
ray      Flower's simulation runtime, which a Ray cluster can scale out

With `flwr run` the engine is the `Grid` that Flower provides.
"""

import importlib.util
import logging
import os
import threading
from functools import partial
from typing import Any, Literal, cast, get_args

from flwr.app import Context, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid, ServerApp

from fedglm.scenarios.scenario import ScenarioError
from fedglm.simulations.engines.inline_grid import RUN_ID, InlineGrid
from fedglm.simulations.engines.shared_disk import SharedDiskGrid
from fedglm.simulations.nodes import SimulatedNodes, make_app

Engine = Literal["inline", "ray"]


def check_engine(name: str) -> Engine:
    """Check the name of an engine and return it.

    Raises:
        ScenarioError: The engine is unknown, or not installed.
    """
    for engine in get_args(Engine):
        if engine == name:
            if engine == "ray" and importlib.util.find_spec("ray") is None:
                raise ScenarioError("engine ray: Ray is not installed: pip install 'fedglm[simulation]'")
            return cast(Engine, engine)
    raise ScenarioError(f"there is no engine {name!r}: choose {' or '.join(get_args(Engine))}")


def run_engine(
    engine: Engine | Grid,
    server_app: ServerApp,
    nodes: SimulatedNodes,
    count: int,
    *,
    workers: int | None,
    stop: threading.Event,
) -> None:
    """Run a federation to its end.

    Args:
        engine: `inline`, `ray`, or a grid with nodes.
        server_app: ServerApp of the coordinator.
        nodes: Makes the nodes.
        count: Number of nodes.
        workers: Number of worker processes; None takes one per core.
        stop: Event that is set at the end, so that a coordinator in another thread ends too.
    """
    server_app = _end_on_full_disk(server_app)
    try:
        if isinstance(engine, Grid):
            server_app(engine, Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), {}))
            return
        if engine == "ray":
            _run_ray(_wait_for_nodes(server_app, count, stop), nodes, count, workers)
            return
        with InlineGrid(partial(make_app, nodes), count, workers) as grid:
            context = Context(RUN_ID, SUPERLINK_NODE_ID, {}, RecordDict(), {})
            server_app(grid, context)
    finally:
        stop.set()


def _end_on_full_disk(server_app: ServerApp) -> ServerApp:
    """Wrap a ServerApp so that it ends where a node's disk is full, which is the server's disk too."""
    wrapped = ServerApp()

    @wrapped.main()
    def main(grid: Grid, context: Context) -> None:
        server_app(SharedDiskGrid(grid), context)

    return wrapped


def _wait_for_nodes(server_app: ServerApp, count: int, stop: threading.Event) -> ServerApp:
    """Wrap a ServerApp so that it waits for all nodes: Flower starts it while it still registers them."""
    wrapped = ServerApp()

    @wrapped.main()
    def main(grid: Grid, context: Context) -> None:
        while len(list(grid.get_node_ids())) < count and not stop.wait(0.05):
            pass
        server_app(grid, context)

    return wrapped


def _run_ray(server_app: ServerApp, nodes: SimulatedNodes, count: int, workers: int | None) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns about a future default
    from flwr.simulation import run_simulation

    logging.getLogger("flwr").setLevel(logging.ERROR)
    init: dict[str, Any] = {"num_cpus": workers} if workers else {}
    run_simulation(
        server_app=server_app,
        client_app=make_app(nodes),
        num_supernodes=count,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": init},
    )
