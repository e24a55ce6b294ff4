"""The sites' port: which requests are forwarded to the SuperLink, and which are rejected with a reason.

A request is anonymous until its headers prove which site sent it (`node_keys`). Only then is its body read, within the
size limit of its path, and counted against the site's own rate limit. A node's reply to a message is forwarded once it
is complete (`reply_buffer`). Flower verifies the signature again, and that the node is the one it claims to be.
"""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from flwr.proto.fleet_pb2 import PullMessagesResponse
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedglm.privacy.errors import PrivacyError
from fedglm.protocol.rejections import NOT_ENROLLED
from fedglm.server.errors import ProjectError
from fedglm.server.gateway.activation import ACTIVATION_REFUSED, RETRY_LATER, activate_node
from fedglm.server.gateway.activation_times import ActivationTimes
from fedglm.server.gateway.asgi import (
    Application,
    BodyError,
    Receive,
    Response,
    Scope,
    Send,
    forward,
    read_body,
    send_error,
)
from fedglm.server.gateway.connections import CONNECTION, Connection
from fedglm.server.gateway.node_keys import EnrolledKeys, Sender
from fedglm.server.gateway.rate_limits import SiteRateLimits, TooManyRequests
from fedglm.server.gateway.reply_buffer import ReplyBuffer
from fedglm.server.gateway.reply_limits import MAX_METADATA_BYTES, ReplyLimits
from fedglm.server.gateway.upload import ReplyError

_FLEET: Final = "/v1/fleet/"
_ACTIVATE_NODE: Final = f"{_FLEET}activate-node"
_PULL_MESSAGES: Final = f"{_FLEET}pull-messages"
_PUSH_MESSAGES: Final = f"{_FLEET}push-messages"
_PUSH_OBJECT: Final = f"{_FLEET}push-object"

_SMALL_BYTES: Final = 4096
MAX_BODY_BYTES: Final[Mapping[str, int]] = MappingProxyType(
    {
        _ACTIVATE_NODE: _SMALL_BYTES,
        _PULL_MESSAGES: _SMALL_BYTES,
        _PUSH_MESSAGES: MAX_METADATA_BYTES,
        **{
            _FLEET + name: _SMALL_BYTES
            for name in (
                "deactivate-node",
                "send-node-heartbeat",
                "get-run",
                "get-fab",
                "pull-object",
                "confirm-message-received",
            )
        },
    }
)
"""Paths that a node may request, with the maximum size of each body; `ReplyBuffer` limits the objects of a reply."""

_IDLE_TIMEOUT_S = 30.0
_BODY_TIMEOUT_S = 305.0
"""Maximum seconds for a request's body: after them its signature has expired."""

_RESPONSE_TIMEOUT_S = 600.0
"""Maximum seconds for sending a response."""

# A SuperNode's reaction to a status: during activation it prints the reason that comes with 412, and ends. Later it
# ends at 401 without a message, and tries again at 503; other statuses end its loop, or lose the message that it sends.
_END_WITH_REASON, _END_NODE = ACTIVATION_REFUSED, 401

_log = logging.getLogger("uvicorn.error")  # which Flower has configured by then


class SitesGateway:
    """ASGI application that filters the sites' requests to Flower's.

    Args:
        application: Flower's ASGI application.
        keys: Keys of the enrolled sites.
        state: The project's state folder.
    """

    def __init__(self, application: Application, keys: EnrolledKeys, state: Path) -> None:
        self._application, self._keys = application, keys
        self._activation_times, self._rate_limits = ActivationTimes(state), SiteRateLimits()
        self._replies = ReplyBuffer(ReplyLimits(state), state)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return  # a web socket; returning without a response closes it
        try:
            sender = self._keys.identify_sender(scope["headers"])
            rejection = self._check_headers(scope, sender)
        except (OSError, PrivacyError, ProjectError) as exc:
            _log.error("nobody is let in: %s", exc)
            sender = Sender(None, None, is_signed=False)
            rejection = (RETRY_LATER, "the server cannot read its list of sites; call the people who run it")
        if rejection is None and sender.site is not None:
            await self._serve(sender.site, scope, receive, send)
        elif rejection is not None:
            await self._reject(scope, send, *rejection)

    async def _serve(self, site: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request that the site's key has signed."""
        connection: Connection | None = scope.get("state", {}).get(CONNECTION)
        if connection is not None:
            connection.authenticate(site)
        length = int(dict(reversed(scope["headers"]))[b"content-length"])
        try:
            async with self._rate_limits.admit(site):
                body = await read_body(receive, length, idle_s=_IDLE_TIMEOUT_S, total_s=_BODY_TIMEOUT_S)
                async with asyncio.timeout(_RESPONSE_TIMEOUT_S):
                    await self._handle(site, scope, body, send)
        except TooManyRequests as exc:
            await self._reject(scope, send, RETRY_LATER, str(exc))
        except TimeoutError:
            _log.warning("%s has not taken its answer within %g s", site, _RESPONSE_TIMEOUT_S)
            if connection is not None:
                connection.abort()
        except BodyError as exc:
            await self._reject(scope, send, 408, f"{site}: {exc}")
        except ReplyError as exc:
            await self._reject(scope, send, exc.status, f"an answer of {site} is not taken: {exc}")

    async def _handle(self, site: str, scope: Scope, body: bytes, send: Send) -> None:
        path = scope["path"]

        async def call_flower(target: str, content: bytes) -> Response:
            return await forward(self._application, scope, content, path=target)

        if path == _ACTIVATE_NODE:
            if await activate_node(self._application, scope, body, send):
                self._record_activation(site)
            return
        if path == _PUSH_MESSAGES:
            response: Response | bytes = self._replies.begin(site, body)
        elif path == _PUSH_OBJECT:
            response = await self._replies.add_object(site, body, call_flower)
        else:
            response = await call_flower(path, body)
            if path == _PULL_MESSAGES and response.status == 200:
                self._record_delivery(site, response.body)
        if isinstance(response, bytes):
            await _send(send, response)
        elif response.status >= 500:  # whatever the cause: the node is to try again, and not to end because of it
            await self._reject(scope, send, RETRY_LATER, f"Flower answers {site} with {response.status}; see above")
        else:
            await response.send_to(send)

    def _record_delivery(self, site: str, body: bytes) -> None:
        try:
            self._replies.record_delivery(site, PullMessagesResponse.FromString(body))
        except DecodeError as exc:
            raise ProjectError("Flower hands out messages in another form: install a tested version") from exc

    def _record_activation(self, site: str) -> None:
        """Record an activation; if that fails, lost messages are only sent to the node again later."""
        try:
            self._activation_times.record(site)
        except OSError as exc:
            _log.error("%s", exc)

    async def _reject(self, scope: Scope, send: Send, status: int, reason: str) -> None:
        address = (scope.get("client") or ("somebody",))[0]
        _log.warning("turned away %s: %.20s %.80r: %s", address, scope["method"], scope["path"], reason)
        await send_error(send, status, reason)

    def _check_headers(self, scope: Scope, sender: Sender) -> tuple[int, str] | None:
        """Check a request before its body is read; return status and reason of a rejection, None to serve it."""
        path = scope["path"]
        if scope["method"] != "POST" or (path not in MAX_BODY_BYTES and path != _PUSH_OBJECT):
            return 403, "this port is for the sites' nodes; runs and registrations are for the server's own machine"
        is_activation = path == _ACTIVATE_NODE
        if sender.site is None:
            reason = f"this node's key {NOT_ENROLLED}; send SITE.pub to the people who run the server"
            return _END_WITH_REASON if is_activation else _END_NODE, reason
        if sender.age_s is None:
            status = _END_WITH_REASON if is_activation else _END_NODE
            return status, f"{sender.site} does not say when it sent its request"
        if not sender.is_fresh:
            way = "behind" if sender.age_s > 0 else "ahead of"
            off = f"{abs(sender.age_s):.0f} s {way} the server's"
            reason = f"the clock of {sender.site} is {off}: set both by a time server"
            return _END_WITH_REASON if is_activation else RETRY_LATER, reason
        if not sender.is_signed:
            return _END_NODE, f"the key of {sender.site} has not signed this request"
        headers = dict(reversed(scope["headers"]))
        length, limit = headers.get(b"content-length", b""), self._max_body_bytes(sender.site, path)
        if b"transfer-encoding" in headers or not length.isdigit() or len(length) > 15:
            return 411, f"{sender.site} does not say how long its message is"
        if int(length) > limit:
            return 413, f"{sender.site} sends {int(length)} bytes, and here {limit} are read at most"
        return None

    def _max_body_bytes(self, site: str, path: str) -> int:
        return self._replies.max_request_bytes(site) if path == _PUSH_OBJECT else MAX_BODY_BYTES[path]


async def _send(send: Send, body: bytes) -> None:
    headers = [(b"content-type", b"application/protobuf"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
