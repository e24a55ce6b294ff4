"""`fedglm client metrics`: the figures of a site's node, for Prometheus."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # else `--help` would wait for cryptography
    from prometheus_client.registry import Collector

    from fedglm.client.site.folder import Site

DEFAULT_PORT = 9464


def metrics(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The site's folder.")] = Path(),
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help=f"Where Prometheus finds them; site.toml's, or {DEFAULT_PORT}, without."),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="Address of this machine; 127.0.0.1 is this machine alone.")
    ] = "127.0.0.1",
) -> None:
    """Serve figures to Prometheus, until Ctrl-C: privacy budget, refusals, memory, and no record.

    They are the site's own. Nothing of them is sent to the server.
    """
    from fedglm.cli.process.exporter import serve
    from fedglm.client.site.folder import open_site

    site = open_site(folder)
    serve(collectors(site), host=listen, port=port or site.settings.site.metrics_port or DEFAULT_PORT)


def collectors(site: "Site") -> "list[Collector]":
    """Return the Prometheus collectors of a site."""
    from fedglm.cli.process.daemon import Daemon
    from fedglm.cli.process.exporter import ProcessCollector
    from fedglm.client.supernode.metrics import SiteCollector

    return [SiteCollector(site), ProcessCollector(Daemon(site.state, "supernode"))]
