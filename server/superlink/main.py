"""Flower's SuperLink with two doors: the sites' port answers what a registered node may ask, this machine's all else.

Flower serves its three interfaces on one port, and only one of them asks who is there. Whoever reached that port could
start a run, which is code on the server, or register a node. Here there are two, and Flower opens neither: one at
127.0.0.1 for processes of this user (`ControlDoor`), and one for the sites (`SitesDoor`), which opens once all
enrolled sites are registered, and nobody else.

    FEDGLM_PROJECT=FOLDER python -m fedglm.server.superlink.main

A Flower that starts its listener in another way never opens a port.
"""

import asyncio
import importlib
import logging
import os
import socket
import ssl
import sys
from types import SimpleNamespace
from typing import Any, Final

import uvicorn

from fedglm.core.local_peers import is_own
from fedglm.core.parent_process import end_with_parent
from fedglm.server.errors import ProjectError
from fedglm.server.gateway.asgi import Application, Receive, Scope, Send
from fedglm.server.gateway.gateway import SitesDoor
from fedglm.server.gateway.guarded_http import HEAD_BYTES, GuardedHTTP
from fedglm.server.gateway.listening import Port, bound, raise_descriptor_limit
from fedglm.server.gateway.node_keys import EnrolledKeys
from fedglm.server.gateway.reply_limits import ReplyLimits
from fedglm.server.gateway.visitors import Places, Visitor, Visitors
from fedglm.server.project.folder import Project, opened_from_environment
from fedglm.server.superlink.app_launcher import AppLauncher
from fedglm.server.superlink.control_gateway import ControlDoor
from fedglm.server.superlink.flower_state import bound_database, say_try_again
from fedglm.server.superlink.log_flood import damp
from fedglm.server.superlink.start_report import bring_in_line, forget

_SHUTDOWN_S: Final = 5  # for requests that are being answered when the SuperLink ends
_OURS: Final = Places(silent=256, unproven=4096, of_address=4096)  # of this user's processes none proves anything

_log = logging.getLogger("uvicorn.error")


class Doors:
    """An ASGI application that tells by the port where a request came in.

    What a request says of itself does not matter, nor from which address it seems to come: behind a container's port
    forwarding, strangers come from 127.0.0.1 too.
    """

    def __init__(self, project: Project, application: Application) -> None:
        self._application, self._control_port = application, project.settings.control_port
        self._control = ControlDoor(application)
        self._sites = SitesDoor(application, EnrolledKeys(project), project.state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif (scope.get("server") or ("", None))[1] == self._control_port:
            await self._control(scope, receive, send)
        else:
            await self._sites(scope, receive, send)


class SuperLinkServer(uvicorn.Server):
    """uvicorn's server, but for how it listens.

    Args:
        config: uvicorn's.
        project: Whose.
        application: Flower's.
        control: Socket for this machine.
        sites: Socket for the sites.
    """

    def __init__(
        self, config: uvicorn.Config, project: Project, application: Any, control: socket.socket, sites: socket.socket
    ) -> None:
        super().__init__(config)
        self._project, self._application = project, application
        self._sockets = control, sites
        self._ports: list[Port] = []
        self._launcher = AppLauncher(application.state.linkstate_factory.state)
        self._launching: asyncio.Task[None] | None = None
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open both ports, the sites' once their nodes are registered."""
        await super().startup(sockets=sockets or [])
        if self.should_exit:
            return
        context = self.config.ssl
        if context is None:
            raise ProjectError("this version of Flower serves without TLS; install a tested one")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        control, sites = self._sockets
        places = Places.within(raise_descriptor_limit())
        self._ports = [
            Port(control, context, self._greet, admits=is_own, visitors=Visitors(_OURS)),
            Port(sites, context, self._greet, visitors=Visitors(places)),
        ]
        self._ports[0].open()
        await bring_in_line(self._project, self._application)
        self._launching = asyncio.create_task(self._launcher.run())
        self._launching.add_done_callback(self._end_with_launcher)
        self._ports[1].open()
        _log.info("Sites reach the SuperLink at %s", self._project.settings.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End all that was started, then the ports."""
        forget(self._project)
        if self._launching is not None:
            self._launching.cancel()
        self._launcher.stop()
        for port in self._ports:
            port.close()
        await super().shutdown(sockets=sockets)

    def _greet(self, visitor: Visitor) -> GuardedHTTP:
        return GuardedHTTP(self.config, self.server_state, self.lifespan.state, visitor)

    def _end_with_launcher(self, task: "asyncio.Task[None]") -> None:
        """Without what starts runs the SuperLink would only seem to work: whoever watches it starts it again."""
        if not task.cancelled() and not self.should_exit:
            _log.error("no run can be started any more", exc_info=task.exception())
            self.exit_code, self.should_exit = 1, True


def main() -> None:
    """Run the SuperLink of the project that the environment names, until a signal ends it."""
    end_with_parent()
    os.umask(0o077)
    project = opened_from_environment()
    settings = project.settings
    forget(project)
    ReplyLimits(project.state).forget_all()
    sockets = _bound("127.0.0.1", settings.control_port), _bound(settings.listen, settings.port)
    bound_database(settings.max_database_bytes)

    def serve(app: Any, host: str, port: int, **options: Any) -> None:
        if (host, port) != ("127.0.0.1", settings.control_port) or not options.get("ssl_certfile"):
            raise ProjectError("this version of Flower listens otherwise than it was told to; install a tested one")
        say_try_again(app)
        ours = {"access_log": False, "proxy_headers": False, "ws": "none", "timeout_graceful_shutdown": _SHUTDOWN_S}
        config = uvicorn.Config(Doors(project, app), h11_max_incomplete_event_size=HEAD_BYTES, **{**options, **ours})
        damp()
        server = SuperLinkServer(config, project, app, *sockets)
        server.run()
        if not server.started or server.exit_code:
            sys.exit(server.exit_code or 1)

    flower = importlib.import_module("flwr.superlink.cli.flower_superlink")
    vars(flower)["uvicorn"] = SimpleNamespace(run=serve)
    sys.argv = ["flower-superlink", *superlink_arguments(project)]
    flower.flower_superlink()


def superlink_arguments(project: Project) -> list[str]:
    """Flower's options: TLS, nodes that sign on, state that outlives the process, nothing else started or installed."""
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


def _bound(host: str, port: int) -> socket.socket:
    try:
        return bound(host, port)
    except OSError as exc:
        raise ProjectError(f"cannot listen on {host}, port {port}: {exc.strerror}") from exc


if __name__ == "__main__":
    main()
