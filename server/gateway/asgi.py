"""Asking an ASGI application from within, and reading the body of a request within bounds."""

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
    """A body that is longer than it says, too slow, or cut off."""


@dataclass
class Answer:
    """An answer, kept back."""

    messages: list[Message] = field(default_factory=list)

    async def keep(self, message: Message) -> None:
        """Take the next part of it."""
        self.messages.append(message)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    async def pass_on(self, send: Send) -> None:
        """Give it to whoever asked."""
        for message in self.messages:
            await send(message)


async def read_body(receive: Receive, length: int, *, idle_s: float, total_s: float) -> bytes:
    """The body of a request, of just the length that its header gives.

    Args:
        receive: As ASGI has it.
        length: Bytes.
        idle_s: Seconds within which something more must come.
        total_s: Seconds within which all of it must have come.

    Raises:
        BodyError: It is longer, came too slowly, or the sender has gone.
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


async def ask(application: Application, scope: Scope, body: bytes, *, path: str | None = None) -> Answer:
    """Ask the application in the name of whoever asked: with the same headers, but another body or path.

    Args:
        application: Flower's.
        scope: Of the request that came in.
        body: To put in the place of its own.
        path: The same.
    """
    length = (b"content-length", str(len(body)).encode())
    headers = [pair for pair in scope["headers"] if pair[0] != length[0]]
    where = path or scope["path"]
    asked = {**scope, "path": where, "raw_path": where.encode(), "headers": [*headers, length]}
    asked["state"] = dict(scope.get("state", {}))  # which each request fills for itself
    given, answer = iter([{"type": "http.request", "body": body, "more_body": False}]), Answer()

    async def receive() -> Message:
        return next(given, {"type": "http.disconnect"})

    await application(asked, receive, answer.keep)
    return answer


async def refuse(send: Send, status: int, reason: str) -> None:
    """Answer with a reason in the form that Flower's commands print, and close the connection.

    Args:
        send: As ASGI has it.
        status: HTTP status.
        reason: One line.
    """
    body = json.dumps({"code": int(_CODE), "detail": f"The federation's server: {reason}"}).encode()
    kind = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": kind})
    await send({"type": "http.response.body", "body": body})
