"""Buffers a node's reply object by object: Flower gets it only when it is complete and verified.

    pull-messages   a message is delivered to the node, which may now reply to it
    push-messages   the node lists the objects of its reply (Flower's object tree); the gateway asks for all of them
    push-object     an object; after the last one the reply is verified and forwarded to Flower

Flower itself would accept as many objects of any size as a node lists, into the one database that all sites and the run
depend on, and would have the run wait for objects that are never sent. An object that two sites name differently would
block the second site. So nothing of a reply reaches Flower before all of it is verified. Until then objects are in
unnamed temporary files: at most one reply per site, of the size that `ReplyLimits` allows.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from flwr.proto.fleet_pb2 import PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedglm.server.gateway.asgi import Response
from fedglm.server.gateway.reply_limits import ReplyLimits
from fedglm.server.gateway.upload import ReplyError, Upload, read_object_tree

MAX_FRAMING_BYTES: Final = 4096
"""Maximum bytes of a push-object request around the object that it carries."""

MAX_ATTEMPTS: Final = 8
"""Attempts that a node has to send its reply to one message, over an unreliable line."""

_MAX_PENDING_MESSAGES: Final = 64  # delivered to a site and without a reply yet
_IDLE_TIMEOUT_S: Final = 305.0  # between objects; a slow line carries one within that, or its signature has expired

CallFlower = Callable[[str, bytes], Awaitable[Response]]
"""Sends Flower a request (path and body) in the name of the node whose request is being served."""


@dataclass
class _PendingMessage:
    """A message that was delivered to a site and has no reply yet."""

    run_id: int
    message_type: str
    attempts_left: int = MAX_ATTEMPTS


class ReplyBuffer:
    """Incomplete replies of all sites.

    Args:
        limits: Maximum sizes of replies, by run.
        folder: Folder of the temporary files.
    """

    def __init__(self, limits: ReplyLimits, folder: Path) -> None:
        self._limits, self._folder = limits, folder
        self._pending: dict[str, OrderedDict[str, _PendingMessage]] = {}
        self._uploads: dict[str, tuple[str, Upload]] = {}

    def record_delivery(self, site: str, response: PullMessagesResponse) -> None:
        """Record the messages that Flower delivers to a site, which may reply to them from now on."""
        pending = self._pending.setdefault(site, OrderedDict())
        for message in response.messages_list:
            metadata = message.metadata
            pending[metadata.message_id] = _PendingMessage(metadata.run_id, metadata.message_type)
        while len(pending) > _MAX_PENDING_MESSAGES:
            pending.popitem(last=False)

    def max_request_bytes(self, site: str) -> int:
        """Return the maximum bytes of a push-object request of the site now."""
        self._discard_idle()
        return MAX_FRAMING_BYTES + (self._uploads[site][1].limit if site in self._uploads else 0)

    def begin(self, site: str, body: bytes) -> bytes:
        """Begin a reply with the list of its objects; an incomplete reply of the site is discarded.

        Args:
            site: Name of the site.
            body: Serialized PushMessagesRequest.

        Returns:
            Serialized PushMessagesResponse that asks for all objects.

        Raises:
            ReplyError: No message waits for this reply, or the request is malformed.
        """
        request = PushMessagesRequest()
        _parse(request, body)
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise ReplyError(400, "an answer is one message with one list of its parts")
        metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        pending = self._pending.get(site, {}).get(metadata.reply_to_message_id)
        if pending is None or (pending.run_id, pending.message_type) != (metadata.run_id, metadata.message_type):
            raise ReplyError(403, "it answers no message that the site was sent")
        if metadata.src_node_id != request.node.node_id or metadata.message_id != tree.object_id:
            raise ReplyError(400, "it is in another node's name, or of other parts than it lists")
        limit = self._limits.max_bytes(pending.run_id, pending.message_type)
        if not limit:
            raise ReplyError(403, "the run is not under way")
        if pending.attempts_left == 0:
            raise ReplyError(429, f"it was begun {MAX_ATTEMPTS} times and never ended")
        children = read_object_tree(tree)
        pending.attempts_left -= 1
        session = secrets.token_hex(16)
        self._replace_upload(site, session, Upload(request, children, limit))
        response = PushMessagesResponse(
            results={metadata.message_id: 0}, objects_to_push=sorted(children), session_id=session
        )
        return bytes(response.SerializeToString())

    async def add_object(self, site: str, body: bytes, call_flower: CallFlower) -> Response | bytes:
        """Add an object to the site's reply; after the last one verify the reply and forward it to Flower.

        Args:
            site: Name of the site.
            body: Serialized PushObjectRequest.
            call_flower: Sends requests to Flower.

        Returns:
            Serialized PushObjectResponse, or Flower's response where Flower rejects the reply, or cannot take it now.

        Raises:
            ReplyError: The object does not belong to the reply, or the complete reply is malformed.
        """
        request = PushObjectRequest()
        _parse(request, body)
        session, upload = self._uploads.get(site, ("", None))
        if upload is None or (request.session_id, request.run_id) != (session, upload.run_id):
            return bytes(PushObjectResponse(stored=False).SerializeToString())  # the node sends the reply again
        async with upload.lock:
            if not upload.is_delivered:
                await asyncio.to_thread(upload.add_object, request.object_id, request.object_content, self._folder)
                if upload.is_complete:
                    if (rejection := await self._deliver(upload, call_flower)) is not None:
                        return rejection  # at 503 the node sends the last object again
                    upload.is_delivered = True
                    upload.discard()
                    self._pending.get(site, OrderedDict()).pop(upload.reply_to_message_id, None)
        return bytes(PushObjectResponse(stored=True).SerializeToString())

    async def _deliver(self, upload: Upload, call_flower: CallFlower) -> Response | None:
        """Forward the complete reply to Flower; return None on success, else Flower's response."""
        contents = await asyncio.to_thread(upload.read_verified)
        response = await call_flower("/v1/fleet/push-messages", upload.request.SerializeToString())
        if response.status != 200:
            return response
        listed = PushMessagesResponse.FromString(response.body)
        for object_id in listed.objects_to_push:
            request = PushObjectRequest(
                node=upload.request.node,
                run_id=upload.run_id,
                object_id=object_id,
                object_content=contents[object_id],
                session_id=listed.session_id,
            )
            response = await call_flower("/v1/fleet/push-object", request.SerializeToString())
            if response.status != 200 or not PushObjectResponse.FromString(response.body).stored:
                return response
        return None

    def _replace_upload(self, site: str, session: str, upload: Upload) -> None:
        if site in self._uploads:
            self._uploads[site][1].discard()
        self._uploads[site] = (session, upload)

    def _discard_idle(self) -> None:
        deadline = time.monotonic() - _IDLE_TIMEOUT_S
        for site in [site for site, (_, upload) in self._uploads.items() if upload.last_activity < deadline]:
            self._uploads.pop(site)[1].discard()


def _parse(message: PushMessagesRequest | PushObjectRequest, body: bytes) -> None:
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise ReplyError(400, "it cannot be read") from None
