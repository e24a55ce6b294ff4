"""`fedglm server metrics`: the figures of a federation's server, for Prometheus."""

from pathlib import Path
from typing import Annotated

import typer


def metrics(
    project: Annotated[Path, typer.Option("--project", "-C", metavar="DIR", help="The project's folder.")] = Path(),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Where Prometheus finds them.")] = 9463,
    listen: Annotated[
        str, typer.Option(help="Address of this machine; 127.0.0.1 is this machine alone.")
    ] = "127.0.0.1",
) -> None:
    """Serve figures to Prometheus, until Ctrl-C.

    [bold]fedglm server metrics -C fl --port 9463[/bold]

    Whoever reaches the port reads names of sites and runs, bytes and times,
    and no more. docs/deploy has rules for alerts and a dashboard.
    """
    from fedglm.cli.process.daemon import Daemon
    from fedglm.cli.process.exporter import ProcessCollector, serve
    from fedglm.server.project.folder import Project
    from fedglm.server.superlink.metrics import ServerCollector

    opened = Project.open(project)
    daemon = Daemon(opened.state, "superlink")
    serve([ServerCollector(opened), ProcessCollector(daemon)], host=listen, port=port)
