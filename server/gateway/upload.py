"""A node's incomplete reply: which objects it consists of, which have arrived, and whether the whole is well-formed.

Flower splits a message into a tree of objects, named by the SHA-256 of their content.
"""

import asyncio
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.constant import HEAD_BODY_DIVIDER
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_object_children_ids_from_object_content,
    get_object_id,
    get_object_type_from_object_content,
    is_valid_sha256_hash,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content

from fedglm.core.errors import FedglmError
from fedglm.server.gateway.record_size import count_metadata_bytes
from fedglm.server.gateway.reply_limits import MAX_METADATA_BYTES

MAX_OBJECTS: Final = 16
"""Maximum objects of one reply; fedglm's have four: message, record dictionary, fields with the update, metrics."""

_MAX_IN_MEMORY_BYTES: Final = 65536
_SAME_METADATA = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "message_type")


class ReplyError(FedglmError):
    """A reply, or an object of one, that is not accepted; the message gives the reason.

    Attributes:
        status: HTTP status. A node drops its reply at 403, silently, and at 400, 413 and 429, with a line in its log.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class Upload:
    """A reply whose objects are being sent.

    Attributes:
        request: Request that listed the objects.
        children: Ids of each object's child objects, by its id.
        limit: Maximum bytes of all objects together.
        last_activity: Time of the last object, by the monotonic clock in seconds.
        is_delivered: Whether Flower has the reply.
        lock: Lock for adding objects and delivering.
    """

    request: PushMessagesRequest
    children: dict[str, frozenset[str]]
    limit: int
    last_activity: float = field(default_factory=time.monotonic)
    is_delivered: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _objects: dict[str, IO[bytes]] = field(default_factory=dict)
    _bytes: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether all objects have arrived."""
        return self._objects.keys() == self.children.keys()

    @property
    def run_id(self) -> int:
        """Flower's id of the run."""
        return int(self.request.messages_list[0].metadata.run_id)

    @property
    def reply_to_message_id(self) -> str:
        """Id of the message that the reply answers."""
        return str(self.request.messages_list[0].metadata.reply_to_message_id)

    def add_object(self, object_id: str, content: bytes, folder: Path) -> None:
        """Add an object; one that is there already changes nothing.

        Args:
            object_id: Id under which the object is listed.
            content: Content of the object.
            folder: Folder for its unnamed temporary file.

        Raises:
            ReplyError: The object is not listed, has another id, or exceeds the limit.
        """
        if object_id not in self.children:
            raise ReplyError(400, "it has no such part")
        if get_object_id(content) != object_id:
            raise ReplyError(400, "a part is not what its name says")
        if object_id not in self._objects:
            if self._bytes + len(content) > self.limit:
                raise ReplyError(413, f"it is longer than the {self.limit} bytes that its kind of answer has at most")
            file = tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY_BYTES, dir=str(folder))  # noqa: SIM115 - see `discard`
            file.write(content)
            self._objects[object_id] = file
            self._bytes += len(content)
        self.last_activity = time.monotonic()

    def read_verified(self) -> dict[str, bytes]:
        """Read the complete reply, verified as the process that serves the run will read it.

        Returns:
            Content of each object, by its id.

        Raises:
            ReplyError: The reply is malformed.
        """
        contents = {}
        for object_id, file in self._objects.items():
            file.seek(0)
            contents[object_id] = file.read()
        self._verify(contents)
        return contents

    def discard(self) -> None:
        """Delete the objects."""
        for file in self._objects.values():
            file.close()
        self._objects.clear()

    def _verify(self, contents: dict[str, bytes]) -> None:
        announced = self.request.messages_list[0].metadata
        try:
            for object_id, content in contents.items():
                validate_object_content(content)
                _check_metadata_size(content)
                children = frozenset(filter(None, get_object_children_ids_from_object_content(content)))
                if children != self.children[object_id]:
                    raise ReplyError(400, "a part is made of others than the list says")
            inflated = inflate_object_from_contents(announced.message_id, contents, keep_object_contents=True)
        except ReplyError:
            raise
        except Exception as exc:  # whatever it is: in the run's own process it would end the run
            raise ReplyError(400, f"it cannot be put together ({type(exc).__name__})") from None
        message = _check_message(inflated)
        if message.has_error() and self._bytes > MAX_METADATA_BYTES:
            raise ReplyError(413, f"it is an error of more than {MAX_METADATA_BYTES} bytes")
        metadata = message.metadata
        for key in _SAME_METADATA:
            if getattr(metadata, key) != getattr(announced, key):
                raise ReplyError(400, f"its {key} is one thing within and another without")


def read_object_tree(tree: ObjectTree) -> dict[str, frozenset[str]]:
    """Return the ids of each object's child objects, by its id.

    Raises:
        ReplyError: The tree is malformed, or has too many objects.
    """
    children: dict[str, frozenset[str]] = {}
    for count, node in enumerate(iterate_object_tree(tree)):
        if count >= MAX_OBJECTS:
            raise ReplyError(413, f"it has more than {MAX_OBJECTS} parts")
        own = frozenset(child.object_id for child in node.children)
        if not is_valid_sha256_hash(node.object_id) or len(own) != len(node.children):
            raise ReplyError(400, "the list of its parts is malformed")
        if children.setdefault(node.object_id, own) != own:
            raise ReplyError(400, "it lists one part in two ways")
    return children


def _check_metadata_size(content: bytes) -> None:
    """Check that an object is short, but for coded updates: parsing anything else may take far more than its size."""
    if len(content) <= MAX_METADATA_BYTES:
        return
    kind = get_object_type_from_object_content(content)
    if (
        kind != ConfigRecord.__qualname__
        or count_metadata_bytes(content.partition(HEAD_BODY_DIVIDER)[2], MAX_METADATA_BYTES) > MAX_METADATA_BYTES
    ):
        raise ReplyError(413, f"of a part more than {MAX_METADATA_BYTES} bytes are something else than an update")


def _check_message(inflated: InflatableObject) -> Message:
    """Check that an object is a message of records."""
    if not isinstance(inflated, Message):
        raise ReplyError(400, "it is no message")
    records: object = inflated.content if inflated.has_content() else RecordDict()
    if not isinstance(records, RecordDict) or not all(
        isinstance(record, ArrayRecord | ConfigRecord | MetricRecord) for record in records.values()
    ):
        raise ReplyError(400, "it holds something else than records")
    return inflated
