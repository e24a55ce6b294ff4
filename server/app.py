"""The coordinator as a Flower ServerApp."""

import threading
from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedglm.core.clock import WALL_CLOCK, Clock
from fedglm.server.coordinator import Coordinator
from fedglm.server.run_setup import Listener, Plan


def build_server_app(
    plan: Plan,
    *,
    listener: Listener,
    stop: threading.Event,
    resume: bool,
    finished: Callable[[Coordinator], None],
    clock: Clock = WALL_CLOCK,
) -> ServerApp:
    """Build the ServerApp of a run.

    Args:
        plan: Plan of the run.
        listener: Is called for each event of the run.
        stop: Event that ends the run early.
        resume: Whether to resume from the newest checkpoint.
        finished: Is called with the coordinator after the last round.
        clock: Clock of the run.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 (Flower's signature)
        coordinator = Coordinator(plan, grid, listener=listener, stop=stop, resume=resume, clock=clock)
        coordinator.run()
        finished(coordinator)

    return app
