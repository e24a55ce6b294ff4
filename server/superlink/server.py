"""HTTP server of the SuperLink: Flower's application on two ports, one for this machine and one for the sites."""

import asyncio
import logging
import socket
import ssl
from typing import Any, Final

import uvicorn

from fedglm.core.processes.local_peers import is_own_process
from fedglm.server.errors import ProjectError
from fedglm.server.gateway.asgi import Application, Receive, Scope, Send
from fedglm.server.gateway.connections import Connection, ConnectionLimits, ConnectionTable
from fedglm.server.gateway.gateway import SitesGateway
from fedglm.server.gateway.guarded_http import GuardedHTTP
from fedglm.server.gateway.node_keys import EnrolledKeys
from fedglm.server.gateway.tls_listener import TlsListener, raise_descriptor_limit
from fedglm.server.project.folder import Project
from fedglm.server.superlink.app_launcher import AppLauncher
from fedglm.server.superlink.certificate_renewal import CertificateRenewal
from fedglm.server.superlink.control_gateway import ControlGateway
from fedglm.server.superlink.start_report import delete_report, prepare_superlink

# This user's own processes do not authenticate.
_CONTROL_LIMITS: Final = ConnectionLimits(silent=256, unauthenticated=4096, per_address=4096)

_log = logging.getLogger("uvicorn.error")


class PortDispatch:
    """ASGI application that selects the gateway by the port on which a request was received.

    Neither the request's headers nor the client's address matter: behind a container's port forwarding, requests from
    elsewhere come from 127.0.0.1 too.
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
    """uvicorn's server with the SuperLink's two listeners.

    Args:
        config: uvicorn's configuration.
        project: Project of the SuperLink.
        application: Flower's FastAPI application.
        control: Bound socket of the control port.
        sites: Bound socket of the sites' port.

    Attributes:
        exit_code: Exit code of the process.
    """

    def __init__(
        self, config: uvicorn.Config, project: Project, application: Any, control: socket.socket, sites: socket.socket
    ) -> None:
        super().__init__(config)
        self._project, self._application = project, application
        self._sockets = control, sites
        self._listeners: list[TlsListener] = []
        self._launcher = AppLauncher(application.state.linkstate_factory.state)
        self._launcher_task: asyncio.Task[None] | None = None
        self._renewal_task: asyncio.Task[None] | None = None
        self.exit_code = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open both ports; the sites' port after their nodes are registered."""
        await super().startup(sockets=sockets or [])
        if self.should_exit:
            return
        context = self.config.ssl
        if context is None:
            raise ProjectError("this version of Flower serves without TLS; install a tested one")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        control, sites = self._sockets
        limits = ConnectionLimits.for_descriptors(raise_descriptor_limit())
        self._listeners = [
            TlsListener(
                control,
                context,
                self._make_protocol,
                accepts=is_own_process,
                connections=ConnectionTable(_CONTROL_LIMITS),
            ),
            TlsListener(sites, context, self._make_protocol, connections=ConnectionTable(limits)),
        ]
        self._listeners[0].open()
        await prepare_superlink(self._project, self._application)
        self._launcher_task = asyncio.create_task(self._launcher.run())
        self._launcher_task.add_done_callback(self._end_with_launcher)
        self._renewal_task = asyncio.create_task(CertificateRenewal(self._project, context).run())
        self._listeners[1].open()
        _log.info("Sites reach the SuperLink at %s", self._project.settings.address)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop the launcher and its processes, then close the ports."""
        delete_report(self._project)
        for task in (self._launcher_task, self._renewal_task):
            if task is not None:
                task.cancel()
        self._launcher.stop()
        for listener in self._listeners:
            listener.close()
        await super().shutdown(sockets=sockets)

    def _make_protocol(self, connection: Connection) -> GuardedHTTP:
        return GuardedHTTP(self.config, self.server_state, self.lifespan.state, connection)

    def _end_with_launcher(self, task: "asyncio.Task[None]") -> None:
        """End the server when the launcher fails: no run could be started any more, and a supervisor restarts it."""
        if not task.cancelled() and not self.should_exit:
            _log.error("no run can be started any more", exc_info=task.exception())
            self.exit_code, self.should_exit = 1, True
