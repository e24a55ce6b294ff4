"""A node's answer while its parts come: which they are, which are there, and whether the whole is what it should be."""

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
from fedglm.server.gateway.record_shape import words_in
from fedglm.server.gateway.reply_limits import WORDS_BYTES

OBJECTS_AT_MOST: Final = 16
"""Parts of one answer; ours have four: message, record dictionary, fields with the update, measures."""

_IN_MEMORY_BYTES: Final = 65536
_SAME = ("run_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "message_type")


class ReplyError(FedglmError):
    """A reply, or a part of one, that is not taken; the message says why.

    Attributes:
        status: HTTP status. A node drops its answer at 403, silently, and at 400, 413 and 429, with a line in its log.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class Upload:
    """An answer of which parts have come.

    Attributes:
        request: What announced it.
        children: Of each part, the parts that it is made of.
        limit: Most bytes of all parts.
        touched: When something came last, by the monotonic clock.
        is_done: Whether Flower has it.
        alone: Held while it is worked on.
    """

    request: PushMessagesRequest
    children: dict[str, frozenset[str]]
    limit: int
    touched: float = field(default_factory=time.monotonic)
    is_done: bool = False
    alone: asyncio.Lock = field(default_factory=asyncio.Lock)
    _parts: dict[str, IO[bytes]] = field(default_factory=dict)
    _bytes: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether all parts are there."""
        return self._parts.keys() == self.children.keys()

    @property
    def run_id(self) -> int:
        """Flower's number of the run."""
        return int(self.request.messages_list[0].metadata.run_id)

    def keep(self, name: str, content: bytes, folder: Path) -> None:
        """Take a part; one that is there already changes nothing.

        Args:
            name: What it is listed under.
            content: The part.
            folder: Where it lies until the rest has come, in a file without a name.

        Raises:
            ReplyError: It is none of the answer's, or there is no room.
        """
        if name not in self.children:
            raise ReplyError(400, "it has no such part")
        if get_object_id(content) != name:
            raise ReplyError(400, "a part is not what its name says")
        if name not in self._parts:
            if self._bytes + len(content) > self.limit:
                raise ReplyError(413, f"it is longer than the {self.limit} bytes that its kind of answer has at most")
            part = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES, dir=str(folder))  # noqa: SIM115 - `drop` closes it
            part.write(content)
            self._parts[name] = part
            self._bytes += len(content)
        self.touched = time.monotonic()

    def contents(self) -> dict[str, bytes]:
        """The whole answer, part by part, checked against what the process that serves the run will read.

        Raises:
            ReplyError: It is not what it should be.
        """
        whole = {}
        for name, part in self._parts.items():
            part.seek(0)
            whole[name] = part.read()
        self._check(whole)
        return whole

    def drop(self) -> None:
        """Forget the parts."""
        for part in self._parts.values():
            part.close()
        self._parts.clear()

    def _check(self, contents: dict[str, bytes]) -> None:
        outside = self.request.messages_list[0].metadata
        try:
            for name, content in contents.items():
                validate_object_content(content)
                _check_length(content)
                own = frozenset(filter(None, get_object_children_ids_from_object_content(content)))
                if own != self.children[name]:
                    raise ReplyError(400, "a part is made of others than the list says")
            inflated = inflate_object_from_contents(outside.message_id, contents, keep_object_contents=True)
        except ReplyError:
            raise
        except Exception as exc:  # whatever it is: in the run's own process it would end the run
            raise ReplyError(400, f"it cannot be put together ({type(exc).__name__})") from None
        message = _message(inflated)
        if message.has_error() and self._bytes > WORDS_BYTES:
            raise ReplyError(413, f"it is an error of more than {WORDS_BYTES} bytes")
        within = message.metadata
        for key in _SAME:
            if getattr(within, key) != getattr(outside, key):
                raise ReplyError(400, f"its {key} is one thing within and another without")


def children_of(tree: ObjectTree) -> dict[str, frozenset[str]]:
    """Of each part of an answer, the parts that it is made of.

    Raises:
        ReplyError: The list is malformed, or too long.
    """
    children: dict[str, frozenset[str]] = {}
    for count, node in enumerate(iterate_object_tree(tree)):
        if count >= OBJECTS_AT_MOST:
            raise ReplyError(413, f"it has more than {OBJECTS_AT_MOST} parts")
        own = frozenset(child.object_id for child in node.children)
        if not is_valid_sha256_hash(node.object_id) or len(own) != len(node.children):
            raise ReplyError(400, "the list of its parts is malformed")
        if children.setdefault(node.object_id, own) != own:
            raise ReplyError(400, "it lists one part in two ways")
    return children


def _check_length(content: bytes) -> None:
    """Hold what may cost more than its bytes to the length of words."""
    if len(content) <= WORDS_BYTES:
        return
    kind = get_object_type_from_object_content(content)
    if (
        kind != ConfigRecord.__qualname__
        or words_in(content.partition(HEAD_BODY_DIVIDER)[2], WORDS_BYTES) > WORDS_BYTES
    ):
        raise ReplyError(413, f"of a part more than {WORDS_BYTES} bytes are something else than an update")


def _message(inflated: InflatableObject) -> Message:
    if not isinstance(inflated, Message):
        raise ReplyError(400, "it is no message")
    records: object = inflated.content if inflated.has_content() else RecordDict()
    if not isinstance(records, RecordDict) or not all(
        isinstance(record, ArrayRecord | ConfigRecord | MetricRecord) for record in records.values()
    ):
        raise ReplyError(400, "it holds something else than records")
    return inflated
