"""The SuperLink's server: Flower's application behind two ports, one for this machine and one for the sites."""

import asyncio
import logging
import socket
import ssl
from typing import Any, Final

import uvicorn

from fedglm.core.local_peers import is_own_process
from fedglm.server.errors import ProjectError
from fedglm.server.gateway.asgi import Application, Receive, Scope, Send
from fedglm.server.gateway.connections import Connection, ConnectionLimits, ConnectionTable
from fedglm.server.gateway.gateway import SitesGateway
from fedglm.server.gateway.guarded_http import GuardedHTTP
from fedglm.server.gateway.node_keys import EnrolledKeys
from fedglm.server.gateway.tls_listener import TlsListener, raise_descriptor_limit
from fedglm.server.project.folder import Project
from fedglm.server.superlink.app_launcher import AppLauncher
from fedglm.server.superlink.control_gateway import ControlGateway
from fedglm.server.superlink.start_report import bring_in_line, forget

_OURS: Final = ConnectionLimits(
    silent=256, unauthenticated=4096, per_address=4096
)  # of this user's processes none proves anything

_log = logging.getLogger("uvicorn.error")


class PortDispatch:
    """An ASGI application that tells by the port where a request came in.

    What a request says of itself does not matter, nor from which address it seems to come: behind a container's port
    forwarding, strangers come from 127.0.0.1 too.
    """

    def __init__(self, project: Project, application: Application) -> None:
        self._application, self._control_port = application, project.settings.control_port
        self._control = ControlGateway(application)
        self._sites = SitesGateway(application, EnrolledKeys(project), project.state)

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
        self._ports: list[TlsListener] = []
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
        places = ConnectionLimits.for_descriptors(raise_descriptor_limit())
        self._ports = [
            TlsListener(control, context, self._greet, accepts=is_own_process, connections=ConnectionTable(_OURS)),
            TlsListener(sites, context, self._greet, connections=ConnectionTable(places)),
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

    def _greet(self, connection: Connection) -> GuardedHTTP:
        return GuardedHTTP(self.config, self.server_state, self.lifespan.state, connection)

    def _end_with_launcher(self, task: "asyncio.Task[None]") -> None:
        """Without what starts runs the SuperLink would only seem to work: whoever watches it starts it again."""
        if not task.cancelled() and not self.should_exit:
            _log.error("no run can be started any more", exc_info=task.exception())
            self.exit_code, self.should_exit = 1, True
