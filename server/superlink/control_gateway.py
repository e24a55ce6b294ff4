"""The control port, for this machine only: the requests of fedglm's own commands and of the process of a run.

Flower runs any code that is submitted to it. Here only fedglm's installed apps may run: a submitted bundle contains no
file but the one that names the app.
"""

import io
import logging
import tomllib
import zipfile
from typing import Final

from flwr.proto.control_pb2 import StartRunRequest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedglm.server.gateway.asgi import Application, BodyError, Receive, Scope, Send, forward, read_body, send_error

START_RUN: Final = "/v1/control/start-run"

ALLOWED_PATHS: Final = frozenset(
    {"/health"}
    | {
        f"/v1/control/{name}"
        for name in (
            "start-run",
            "stop-run",
            "list-runs",
            "stream-logs",
            "list-nodes",
            "register-node",
            "unregister-node",
            "list-federations",
        )
    }
    | {
        f"/v1/runtime/{name}"
        for name in (
            "send-task-heartbeat",
            "pull-task-input",
            "push-task-output",
            "push-object",
            "pull-object",
            "confirm-message-received",
            "push-logs",
            "push-messages",
            "pull-messages",
            "get-nodes",
        )
    }
)
"""Paths that are forwarded: Flower's automations, connectors and agents are not used, and each would run something."""

_APPS: Final = (
    {"serverapp": "fedglm.server.deployment.server_app:app", "clientapp": "fedglm.client.supernode.client_app:app"},
    {"serverapp": "fedglm.simulations.flower_app:server", "clientapp": "fedglm.simulations.flower_app:client"},
)
_BUNDLE_FILES: Final = {"pyproject.toml", ".info/CONTENT"}
_MAX_BYTES: Final = 65536  # of the request, and of each file in the bundle

_log = logging.getLogger("uvicorn.error")


class ControlGateway:
    """ASGI application that filters this machine's requests to Flower's.

    Args:
        application: Flower's ASGI application.
    """

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path = scope["path"]
        if path not in ALLOWED_PATHS:
            _log.warning("turned away: %.80r is not for this port", path)
            await send_error(send, 403, "that is not for this port, or of no use here")
        elif path == START_RUN:
            await self._start(scope, receive, send)
        else:
            await self._application(scope, receive, send)

    async def _start(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit() or len(length) > 9 or int(length) > _MAX_BYTES:
            await send_error(send, 413, f"a run is handed over in {_MAX_BYTES} bytes at most")
            return
        try:
            body = await read_body(receive, int(length), idle_s=30.0, total_s=60.0)
        except BodyError as exc:
            await send_error(send, 408, str(exc))
            return
        if (reason := check_start_run(body)) is not None:
            _log.warning("a run is not taken: %s", reason)
            await send_error(send, 403, f"the run is not taken: {reason}")
            return
        await (await forward(self._application, scope, body)).send_to(send)


def check_start_run(body: bytes) -> str | None:
    """Check that a serialized StartRunRequest names one of fedglm's apps; return the reason if not, else None."""
    request = StartRunRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        return "it cannot be read"
    if request.app_spec or request.connector_refs or request.connector_ids or request.user_prompt:
        return "it asks for an app that is not in it"
    try:
        with zipfile.ZipFile(io.BytesIO(request.fab.content)) as bundle:
            entries = bundle.infolist()
            if {entry.filename for entry in entries} != _BUNDLE_FILES or len(entries) != len(_BUNDLE_FILES):
                return "its bundle holds other files than a pyproject.toml, and only what is installed here may run"
            if any(entry.file_size > _MAX_BYTES for entry in entries):
                return f"a file of its bundle is longer than {_MAX_BYTES} bytes"
            config = tomllib.loads(bundle.read("pyproject.toml").decode())
        app, project = config["tool"]["flwr"]["app"], config["project"]
        if (app["publisher"], app["components"]) not in [("fedglm", components) for components in _APPS]:
            return "its bundle names another app than fedglm's"
        if project["name"] not in ("fedglm", "fedglm-run"):
            return "its bundle is of another project than fedglm"
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RuntimeError, NotImplementedError, EOFError) as exc:
        return f"its bundle cannot be read ({type(exc).__name__})"
    return None
