"""Flower's SuperLink with two ports: one for the requests of registered nodes, one for this machine's.

Flower serves its three interfaces on one port, and only one of them authenticates its clients. Whoever reached that
port could start a run, which is code on the server, or register a node. Here there are two ports, and Flower opens
neither: one at 127.0.0.1 for processes of this user (`ControlGateway`), and one for the sites (`SitesGateway`), which
opens once the nodes of all enrolled sites are registered, and no others.

    FEDGLM_PROJECT=FOLDER python -m fedglm.server.superlink.main

A version of Flower that starts its listener in another way never opens a port.
"""

import importlib
import os
import socket
import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Final

import uvicorn

from fedglm.core.processes.parent_process import end_with_parent
from fedglm.server.errors import ProjectError
from fedglm.server.gateway.guarded_http import MAX_HEADERS_BYTES
from fedglm.server.gateway.reply_limits import ReplyLimits
from fedglm.server.gateway.tls_listener import bind_socket
from fedglm.server.project.folder import Project, open_from_environment
from fedglm.server.superlink.flower_state import limit_database, respond_503_on_database_errors
from fedglm.server.superlink.log_rate_limit import limit_log_rate
from fedglm.server.superlink.server import PortDispatch, SuperLinkServer
from fedglm.server.superlink.start_report import delete_report

_SHUTDOWN_TIMEOUT_S: Final = 5  # for requests that are being served when the SuperLink ends


def main() -> None:
    """Run the SuperLink of the project in the environment variable, until a signal ends it."""
    end_with_parent()
    os.umask(0o077)
    project = open_from_environment()
    settings = project.settings
    delete_report(project)
    ReplyLimits(project.state).clear()
    sockets = _bind("127.0.0.1", settings.control_port), _bind(settings.listen, settings.port)
    limit_database(settings.max_database_bytes)

    def serve(app: Any, host: str, port: int, **options: Any) -> None:
        if (host, port) != ("127.0.0.1", settings.control_port) or not options.get("ssl_certfile"):
            raise ProjectError("this version of Flower listens otherwise than it was told to; install a tested one")
        respond_503_on_database_errors(app)
        overrides = {
            "access_log": False,
            "proxy_headers": False,
            "ws": "none",
            "timeout_graceful_shutdown": _SHUTDOWN_TIMEOUT_S,
        }
        config = uvicorn.Config(
            PortDispatch(project, app), h11_max_incomplete_event_size=MAX_HEADERS_BYTES, **{**options, **overrides}
        )
        limit_log_rate()
        server = SuperLinkServer(config, project, app, *sockets)
        server.run()
        if not server.started or server.exit_code:
            sys.exit(server.exit_code or 1)

    run_flower(make_arguments(project), serve)


def run_flower(arguments: Sequence[str], serve: Callable[..., None]) -> None:
    """Run Flower's own command in this process, with another function to serve its application.

    Args:
        arguments: Options of the command.
        serve: Replaces `uvicorn.run`, which the command calls once.
    """
    flower = importlib.import_module("flwr.superlink.cli.flower_superlink")
    vars(flower)["uvicorn"] = SimpleNamespace(run=serve)
    sys.argv = ["flower-superlink", *arguments]
    flower.flower_superlink()


def make_arguments(project: Project) -> list[str]:
    """Make Flower's options: TLS, node authentication, a persistent database; nothing else is started or installed."""
    return [
        *("--ssl-certfile", str(project.certificate)),
        *("--ssl-keyfile", str(project.server_key)),
        *("--ssl-ca-certfile", str(project.authority)),
        "--enable-supernode-auth",
        *("--database", str(project.database)),
        *("--host", "127.0.0.1"),
        *("--port", str(project.settings.control_port)),
        *("--isolation", "process"),
        "--disable-runtime-dependency-installation",
    ]


def _bind(host: str, port: int) -> socket.socket:
    try:
        return bind_socket(host, port)
    except OSError as exc:
        raise ProjectError(f"cannot listen on {host}, port {port}: {exc.strerror}") from exc


if __name__ == "__main__":
    main()
