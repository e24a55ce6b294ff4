"""ASGI helpers: forward a request to an application, read a body within limits, send an error response."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from flwr.supercore.error import ApiErrorCode

from fedglm.core.errors import FedglmError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_CODE = ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED  # any of Flower's: its nodes and commands print the text beside it


class BodyError(FedglmError):
    """A request body that exceeds its declared length, arrives too slowly, or is cut off."""


@dataclass
class Response:
    """A buffered response.

    Attributes:
        messages: ASGI messages of the response: the start, then parts of the body.
    """

    messages: list[Message] = field(default_factory=list)

    async def append(self, message: Message) -> None:
        """Append the next ASGI message; usable as ASGI's `send`."""
        self.messages.append(message)

    @property
    def status(self) -> int:
        """HTTP status."""
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        """Complete body."""
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    async def send_to(self, send: Send) -> None:
        """Send the response to the client."""
        for message in self.messages:
            await send(message)


async def read_body(receive: Receive, length: int, *, idle_s: float, total_s: float) -> bytes:
    """Read a request's body.

    Args:
        receive: ASGI's `receive`.
        length: Declared length in bytes, from the header.
        idle_s: Maximum seconds without a further byte.
        total_s: Maximum seconds for the complete body.

    Raises:
        BodyError: The body is longer than `length`, arrived too slowly, or the client has disconnected.
    """
    body, more, deadline = bytearray(), True, time.monotonic() + total_s
    while more:
        try:
            message = await asyncio.wait_for(receive(), min(idle_s, max(0.0, deadline - time.monotonic())))
        except TimeoutError:
            raise BodyError(f"only {len(body)} of {length} bytes came in time") from None
        if message["type"] != "http.request":
            raise BodyError(f"the sender has gone after {len(body)} of {length} bytes")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > length:
            raise BodyError(f"more than the {length} bytes came that were announced")
    return bytes(body)


async def forward(application: Application, scope: Scope, body: bytes, *, path: str | None = None) -> Response:
    """Forward a client's request to the application with the same headers, but another body or path.

    Args:
        application: Flower's ASGI application.
        scope: ASGI scope of the client's request.
        body: Body that replaces the request's.
        path: Path that replaces the request's; None keeps it.

    Returns:
        The application's response.
    """
    length = (b"content-length", str(len(body)).encode())
    headers = [pair for pair in scope["headers"] if pair[0] != length[0]]
    target = path or scope["path"]
    forwarded = {**scope, "path": target, "raw_path": target.encode(), "headers": [*headers, length]}
    forwarded["state"] = dict(scope.get("state", {}))  # each request fills its own
    requests, response = iter([{"type": "http.request", "body": body, "more_body": False}]), Response()

    async def receive() -> Message:
        return next(requests, {"type": "http.disconnect"})

    await application(forwarded, receive, response.append)
    return response


async def send_error(send: Send, status: int, reason: str) -> None:
    """Send an error response with a reason in the form that Flower's commands print, and close the connection.

    Args:
        send: ASGI's `send`.
        status: HTTP status.
        reason: Reason in one line.
    """
    body = json.dumps({"code": int(_CODE), "detail": f"The federation's server: {reason}"}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
