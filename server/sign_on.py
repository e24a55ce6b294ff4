"""How a node signs on again that was killed: at once, not when Flower has noticed that it is gone.

Flower takes a node for online until it was silent for a minute, refuses to activate it meanwhile, and a SuperNode ends
over that refusal. Here the node that signs on takes the place of the one that is taken for online: it is deactivated
first, in the node's own name. That takes the node's signature, which Flower checks as for every request; one signature
serves both, for it is over the time alone.
"""

import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

REFUSED = 412
"""Flower's status for a node that it does not activate."""

TRY_AGAIN = 503
"""Status at which a SuperNode waits for some seconds and asks again."""

MOST_BODY_BYTES = 65536
"""Longest request to sign on; a usual one has about 250 bytes."""

_log = logging.getLogger("uvicorn.error")


@dataclass
class _Answer:
    """An answer, kept back."""

    messages: list[Message] = field(default_factory=list)

    async def keep(self, message: Message) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])


async def sign_on(application: Application, scope: Scope, receive: Receive, send: Send) -> bool:
    """Pass a node's request to be activated on to Flower; where Flower refuses, make room for the node and ask again.

    Args:
        application: Flower's.
        scope: Of a POST to `/v1/fleet/activate-node` that says its length.
        receive: As ASGI has it.
        send: As ASGI has it.

    Returns:
        Whether the node is let in; Flower has then checked its signature.
    """
    body = await _body(receive)
    answer = await _ask(application, scope, body)
    if answer.status == REFUSED and (node_id := await _node_id(application, scope, body)) is not None:
        request = DeactivateNodeRequest(node_id=node_id).SerializeToString()
        if (await _ask(application, scope, request, path="/v1/fleet/deactivate-node")).status == 200:
            _log.info("node %d signs on again; the one that counted as online is taken for gone", node_id)
            answer = await _ask(application, scope, body)
    for message in answer.messages:
        if message["type"] == "http.response.start" and message["status"] == REFUSED:
            # Enrolled, so it will be let in: when the SuperLink has registered it, or takes it for gone.
            message = {**message, "status": TRY_AGAIN}
        await send(message)
    return answer.status == 200


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break  # the node has gone
        parts.append(message.get("body", b""))
        more = message.get("more_body", False) and sum(map(len, parts)) <= MOST_BODY_BYTES
    return b"".join(parts)


async def _ask(application: Application, scope: Scope, body: bytes, *, path: str | None = None) -> _Answer:
    """Ask Flower in the node's name: with the headers that it signed."""
    length = (b"content-length", str(len(body)).encode())
    headers = [pair for pair in scope["headers"] if pair[0] != length[0]]
    where = path or scope["path"]
    asked = {**scope, "path": where, "raw_path": where.encode(), "headers": [*headers, length]}
    asked["state"] = dict(scope.get("state", {}))  # which each request fills for itself
    given, answer = iter([{"type": "http.request", "body": body, "more_body": False}]), _Answer()

    async def receive() -> Message:
        return next(given, {"type": "http.disconnect"})

    await application(asked, receive, answer.keep)
    return answer


async def _node_id(application: Application, scope: Scope, body: bytes) -> int | None:
    """Flower's number of the node that signs on; None for one that it does not know."""
    try:
        key = ActivateNodeRequest.FromString(body).public_key
        answer = await _ask(application, scope, ListNodesRequest().SerializeToString(), path="/v1/control/list-nodes")
        nodes = ListNodesResponse.FromString(answer.body).nodes_info if answer.status == 200 else []
    except DecodeError:
        return None
    return next((int(node.node_id) for node in nodes if node.public_key == key and node.status == "online"), None)
