"""How a node signs on again that was killed: at once, not when Flower has noticed that it is gone.

Flower takes a node for online until it was silent for a minute, refuses to activate it meanwhile, and a SuperNode ends
over that refusal. Here the node that signs on takes the place of the one that is taken for online: it is deactivated
first, in the node's own name. That takes the node's signature, which Flower checks as for every request; one signature
serves both, for it is over the time alone.
"""

import logging

from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedglm.server.gateway.asgi import Application, Scope, Send, ask

REFUSED = 412
"""Flower's status for a node that it does not activate."""

TRY_AGAIN = 503
"""Status at which a SuperNode waits for some seconds and asks again."""

_log = logging.getLogger("uvicorn.error")


async def sign_on(application: Application, scope: Scope, body: bytes, send: Send) -> bool:
    """Pass a node's request to be activated on to Flower; where Flower refuses, make room for the node and ask again.

    Args:
        application: Flower's.
        scope: Of a POST to `/v1/fleet/activate-node`.
        body: An ActivateNodeRequest.
        send: As ASGI has it.

    Returns:
        Whether the node is let in; Flower has then checked its signature.
    """
    answer = await ask(application, scope, body)
    if answer.status == REFUSED and (node_id := await _node_id(application, scope, body)) is not None:
        request = DeactivateNodeRequest(node_id=node_id).SerializeToString()
        if (await ask(application, scope, request, path="/v1/fleet/deactivate-node")).status == 200:
            _log.info("node %d signs on again; the one that counted as online is taken for gone", node_id)
            answer = await ask(application, scope, body)
    for message in answer.messages:
        if message["type"] == "http.response.start" and message["status"] == REFUSED:
            # Enrolled, so it will be let in: when the SuperLink has registered it, or takes it for gone.
            message = {**message, "status": TRY_AGAIN}
        await send(message)
    return answer.status == 200


async def _node_id(application: Application, scope: Scope, body: bytes) -> int | None:
    """Flower's number of the node that signs on; None for one that it does not know."""
    try:
        key = ActivateNodeRequest.FromString(body).public_key
        answer = await ask(application, scope, ListNodesRequest().SerializeToString(), path="/v1/control/list-nodes")
        nodes = ListNodesResponse.FromString(answer.body).nodes_info if answer.status == 200 else []
    except DecodeError:
        return None
    return next((int(node.node_id) for node in nodes if node.public_key == key and node.status == "online"), None)
