"""Flower's SuperLink with two doors: the sites' port answers what a registered node may ask, this machine's all else.

Flower serves its three interfaces on one port, and only one of them asks who is there. Whoever reached that port could
start a run, which is code on the server, or register a node. Here Flower itself listens on 127.0.0.1 alone. The port
for the sites is opened beside it, on the same application, behind `SitesDoor`.

    FEDGLM_PROJECT=FOLDER python -m fedglm.server.superlink

A Flower that starts its listener in another way never opens the sites' port.
"""

import importlib
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import uvicorn

from fedglm.server.errors import ProjectError
from fedglm.server.project import PROJECT, Project
from fedglm.server.sign_on import Application
from fedglm.server.sign_ons import SignOns
from fedglm.server.sites_door import EnrolledKeys, SitesDoor

_SHUTDOWN_S = 5  # for requests that are being answered when the SuperLink ends
_BACKLOG = 2048


def main() -> None:
    """Run the SuperLink of the project that the environment names, until a signal ends it."""
    project = Project.open(Path(os.environ[PROJECT]))
    settings = project.settings
    sites = _bound(settings.listen, settings.port)

    def serve(app: Application, host: str, port: int, **options: Any) -> None:
        if (host, port) != ("127.0.0.1", settings.control_port) or not options.get("ssl_certfile"):
            raise ProjectError("this version of Flower listens otherwise than it was told to; install a tested one")
        config = uvicorn.Config(
            SitesDoor(app, settings.control_port, EnrolledKeys(project), SignOns(project.state)),
            timeout_graceful_shutdown=_SHUTDOWN_S,
            backlog=_BACKLOG,
            **options,
        )
        server = uvicorn.Server(config)
        server.run(sockets=[_bound(host, port), sites])
        if not server.started:
            sys.exit(1)

    flower = importlib.import_module("flwr.superlink.cli.flower_superlink")
    vars(flower)["uvicorn"] = SimpleNamespace(run=serve)
    sys.argv = ["flower-superlink", *superlink_arguments(project)]
    flower.flower_superlink()


def superlink_arguments(project: Project) -> list[str]:
    """Flower's options: TLS, nodes that sign on, state that outlives the process, nothing installed at run time."""
    return [
        *("--ssl-certfile", str(project.certificate)),
        *("--ssl-keyfile", str(project.server_key)),
        *("--ssl-ca-certfile", str(project.authority)),
        "--enable-supernode-auth",
        *("--database", str(project.database)),
        *("--host", "127.0.0.1"),
        *("--port", str(project.settings.control_port)),
        "--disable-runtime-dependency-installation",
    ]


def _bound(host: str, port: int) -> socket.socket:
    """A TCP socket at this address, not yet listening."""
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError as exc:
        made.close()
        raise ProjectError(f"cannot listen on {host}, port {port}: {exc.strerror}") from exc
    return made


if __name__ == "__main__":
    main()
