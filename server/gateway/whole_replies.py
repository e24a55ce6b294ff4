"""A node's reply as it comes, part by part: Flower sees it once all of it is there, and is what it should be.

    pull-messages   the node is handed a message, and may answer it
    push-messages   it says of which parts its answer is made; the door asks for all of them
    push-object     a part; with the last one the answer is checked, and handed on to Flower

Flower itself would take as many parts of any size as a node announces, into the one database that all sites and the
run depend on, and would have the run wait for those that never come. A part that two sites name differently would stop
the second. So nothing of a reply reaches it before the whole was checked. Parts lie in unnamed temporary files
meanwhile: at most one answer a site, of the size that `ReplyLimits` gives.
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

from fedglm.server.gateway.asgi import Answer
from fedglm.server.gateway.reply_limits import ReplyLimits
from fedglm.server.gateway.reply_parts import ReplyError, Upload, children_of

FRAME_BYTES: Final = 4096
"""What a request may have around the part that it carries."""

TRIES: Final = 8
"""Of a node to send the answer to one message, over a bad line."""

_MESSAGES: Final = 64  # that a site was handed and has not answered yet
_IDLE_S: Final = 305.0  # without a part; a slow line carries one within that, or its signature is out of date

Ask = Callable[[str, bytes], Awaitable[Answer]]
"""Asks Flower, in the name of the node that is being answered: path and body."""


@dataclass
class _Asked:
    """A message that a site was handed."""

    run_id: int
    kind: str
    tries: int = TRIES


class WholeReplies:
    """The replies of all sites that are on their way.

    Args:
        limits: How much a run's sites may send.
        folder: Where parts lie until the rest has come.
    """

    def __init__(self, limits: ReplyLimits, folder: Path) -> None:
        self._limits, self._folder = limits, folder
        self._asked: dict[str, OrderedDict[str, _Asked]] = {}
        self._uploads: dict[str, tuple[str, Upload]] = {}

    def handed(self, site: str, response: PullMessagesResponse) -> None:
        """Flower hands messages to a site, which it may answer from now on."""
        asked = self._asked.setdefault(site, OrderedDict())
        for message in response.messages_list:
            metadata = message.metadata
            asked[metadata.message_id] = _Asked(metadata.run_id, metadata.message_type)
        while len(asked) > _MESSAGES:
            asked.popitem(last=False)

    def room(self, site: str) -> int:
        """How long a request may be that brings a part of the site's answer."""
        self._forget_idle()
        return FRAME_BYTES + (self._uploads[site][1].limit if site in self._uploads else 0)

    def announce(self, site: str, body: bytes) -> bytes:
        """Take the list of an answer's parts.

        Args:
            site: Whose.
            body: A PushMessagesRequest.

        Returns:
            A PushMessagesResponse that asks for all of them.

        Raises:
            ReplyError: It answers nothing that was asked, or is not what an answer is.
        """
        request = PushMessagesRequest()
        _parse(request, body)
        if len(request.messages_list) != 1 or len(request.message_object_trees) != 1:
            raise ReplyError(400, "an answer is one message with one list of its parts")
        metadata, tree = request.messages_list[0].metadata, request.message_object_trees[0]
        asked = self._asked.get(site, {}).get(metadata.reply_to_message_id)
        if asked is None or (asked.run_id, asked.kind) != (metadata.run_id, metadata.message_type):
            raise ReplyError(403, "it answers no message that the site was sent")
        if metadata.src_node_id != request.node.node_id or metadata.message_id != tree.object_id:
            raise ReplyError(400, "it is in another node's name, or of other parts than it lists")
        limit = self._limits.bytes_at_most(asked.run_id, asked.kind)
        if not limit:
            raise ReplyError(403, "the run is not under way")
        if asked.tries == 0:
            raise ReplyError(429, f"it was begun {TRIES} times and never ended")
        children = children_of(tree)
        asked.tries -= 1
        session = secrets.token_hex(16)
        self._begin(site, session, Upload(request, children, limit))
        response = PushMessagesResponse(
            results={metadata.message_id: 0}, objects_to_push=sorted(children), session_id=session
        )
        return bytes(response.SerializeToString())

    async def take(self, site: str, body: bytes, ask: Ask) -> Answer | bytes:
        """Take a part of an answer; with the last one, hand the answer on to Flower.

        Args:
            site: Whose.
            body: A PushObjectRequest.
            ask: Asks Flower.

        Returns:
            A PushObjectResponse, or Flower's answer where that takes it not, or not now.

        Raises:
            ReplyError: The part is none of the answer's, or the answer is not what it should be.
        """
        request = PushObjectRequest()
        _parse(request, body)
        session, upload = self._uploads.get(site, ("", None))
        if upload is None or (request.session_id, request.run_id) != (session, upload.run_id):
            return bytes(PushObjectResponse(stored=False).SerializeToString())  # the node sends all of it again
        async with upload.alone:
            if not upload.is_done:
                await asyncio.to_thread(upload.keep, request.object_id, request.object_content, self._folder)
                if upload.is_whole:
                    if (refused := await self._hand_on(upload, ask)) is not None:
                        return refused  # at 503 the node sends the last part again
                    upload.is_done = True
                    upload.drop()
                    self._asked.get(site, OrderedDict()).pop(_asked_by(upload), None)
        return bytes(PushObjectResponse(stored=True).SerializeToString())

    async def _hand_on(self, upload: Upload, ask: Ask) -> Answer | None:
        """Give Flower the whole answer; None once it has it, else what it says."""
        contents = await asyncio.to_thread(upload.contents)
        answer = await ask("/v1/fleet/push-messages", upload.request.SerializeToString())
        if answer.status != 200:
            return answer
        response = PushMessagesResponse.FromString(answer.body)
        for name in response.objects_to_push:
            part = PushObjectRequest(
                node=upload.request.node,
                run_id=upload.run_id,
                object_id=name,
                object_content=contents[name],
                session_id=response.session_id,
            )
            answer = await ask("/v1/fleet/push-object", part.SerializeToString())
            if answer.status != 200 or not PushObjectResponse.FromString(answer.body).stored:
                return answer
        return None

    def _begin(self, site: str, session: str, upload: Upload) -> None:
        if site in self._uploads:
            self._uploads[site][1].drop()
        self._uploads[site] = (session, upload)

    def _forget_idle(self) -> None:
        old = time.monotonic() - _IDLE_S
        for site in [site for site, (_, upload) in self._uploads.items() if upload.touched < old]:
            self._uploads.pop(site)[1].drop()


def _asked_by(upload: Upload) -> str:
    """Id of the message that is answered."""
    return str(upload.request.messages_list[0].metadata.reply_to_message_id)


def _parse(message: PushMessagesRequest | PushObjectRequest, body: bytes) -> None:
    try:
        message.ParseFromString(body)
    except DecodeError:
        raise ReplyError(400, "it cannot be read") from None
