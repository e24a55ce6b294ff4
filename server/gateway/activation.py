"""Activation of a node that was killed: accepted at once, not only after Flower's heartbeat timeout.

Flower counts a node as online until it has been silent for a minute, refuses to activate it in that time, and the
SuperNode ends because of the refusal. Here the new node replaces the one that counts as online, which is deactivated
first, in the node's own name. That takes the node's signature, which Flower verifies as for every request; the same
signature serves for both requests, because it covers only the time.
"""

import logging

from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedglm.server.gateway.asgi import Application, Scope, Send, forward

ACTIVATION_REFUSED = 412
"""Flower's HTTP status for a node that it does not activate."""

RETRY_LATER = 503
"""HTTP status after which a SuperNode waits for some seconds and sends the request again."""

_log = logging.getLogger("uvicorn.error")


async def activate_node(application: Application, scope: Scope, body: bytes, send: Send) -> bool:
    """Forward a node's activation to Flower; where Flower refuses it, deactivate the node and try again.

    Args:
        application: Flower's ASGI application.
        scope: ASGI scope of a POST to `/v1/fleet/activate-node`.
        body: Serialized ActivateNodeRequest.
        send: ASGI's `send`; receives the response.

    Returns:
        Whether the node is active; Flower has then verified its signature.
    """
    response = await forward(application, scope, body)
    if (
        response.status == ACTIVATION_REFUSED
        and (node_id := await _find_online_node(application, scope, body)) is not None
    ):
        request = DeactivateNodeRequest(node_id=node_id).SerializeToString()
        if (await forward(application, scope, request, path="/v1/fleet/deactivate-node")).status == 200:
            _log.info("node %d signs on again; the one that counted as online is taken for gone", node_id)
            response = await forward(application, scope, body)
    for message in response.messages:
        if message["type"] == "http.response.start" and message["status"] == ACTIVATION_REFUSED:
            # The site is enrolled, so its node is activated once the SuperLink has registered it or counts it offline.
            message = {**message, "status": RETRY_LATER}
        await send(message)
    return response.status == 200


async def _find_online_node(application: Application, scope: Scope, body: bytes) -> int | None:
    """Return Flower's id of the online node with the request's key; None where there is none."""
    try:
        key = ActivateNodeRequest.FromString(body).public_key
        request = ListNodesRequest().SerializeToString()
        response = await forward(application, scope, request, path="/v1/control/list-nodes")
        nodes = ListNodesResponse.FromString(response.body).nodes_info if response.status == 200 else []
    except DecodeError:
        return None
    return next((int(node.node_id) for node in nodes if node.public_key == key and node.status == "online"), None)
