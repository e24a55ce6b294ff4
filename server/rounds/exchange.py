"""Sending to nodes and taking their replies one by one, as they come."""

import logging
import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from fedglm.core.clock import WALL_CLOCK, Clock
from fedglm.core.errors import FedglmError
from fedglm.server.rounds.patience import Patience

LOG = logging.getLogger(__name__)

_UNREADABLE = (DecodeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""What Flower raises over a reply whose bytes are none of its messages, from `inflate` and the constructors of records;
that the SuperLink is away is none of them."""

_POLL_S: Final = 0.05
"""Seconds between two looks for replies."""

PULLED = 32
"""Replies asked for at a time: a grid holds all of one call in memory."""


@dataclass(frozen=True)
class Sent:
    """A message under way.

    Attributes:
        node_id: Whom it was sent to.
        message_type: `train`, `evaluate` or `query`.
    """

    node_id: int
    message_type: str


class Stopped(FedglmError, RuntimeError):
    """Somebody asked the server to stop while it waited for replies."""


class Exchange:
    """Messages under way between the server and its nodes.

    Flower's own `send_and_receive` returns all replies at once; pulling a few at a time keeps the server's memory flat
    in the number of nodes, and lets a reply be answered within the round.

    Args:
        grid: Flower's way to the nodes.
        stop: When set, waiting ends with `Stopped`.
        clock: By which all that goes on over this exchange waits.

    Attributes:
        clock: See above.
    """

    def __init__(self, grid: Grid, stop: threading.Event, *, clock: Clock = WALL_CLOCK) -> None:
        self._grid, self._stop, self.clock = grid, stop, clock
        self._waiting: dict[str, Sent] = {}

    def send(self, contents: Iterable[tuple[int, RecordDict]], message_type: str, server_round: int) -> None:
        """Push one message to each node.

        Args:
            contents: Pairs of Flower node id and content.
            message_type: `train`, `evaluate` or `query`.
            server_round: Groups the messages.
        """
        for node_id, content in contents:
            message = Message(content, dst_node_id=node_id, message_type=message_type, group_id=str(server_round))
            for message_id in self._grid.push_messages([message]):
                self._waiting[message_id] = Sent(node_id, message_type)

    def poll(self) -> Iterator[tuple[Sent, Message]]:
        """Look once for replies, and yield each with what it answers; more may be sent meanwhile.

        One that cannot be read comes as a message without content.

        Raises:
            Stopped: The stop event was set.
        """
        if self._stop.is_set():
            raise Stopped("stopped on request")
        waiting = list(self._waiting)
        for start in range(0, len(waiting), PULLED):
            for message_id, reply in self._pulled(waiting[start : start + PULLED]):
                sent = self._waiting.pop(message_id, None)
                if sent is not None:
                    yield sent, reply

    def _pulled(self, message_ids: list[str]) -> Iterator[tuple[str, Message]]:
        """The replies that are there, and what each answers."""
        try:
            for reply in self._grid.pull_messages(message_ids):
                yield reply.metadata.reply_to_message_id, reply
        except _UNREADABLE:
            if len(message_ids) > 1:  # one of them; what else Flower gave away with it is asked for again in time
                for message_id in message_ids:
                    yield from self._pulled([message_id])
            elif (sent := self._waiting.get(message_ids[0])) is not None:
                LOG.exception("the reply of node %d is no message", sent.node_id)
                yield message_ids[0], Message(RecordDict(), dst_node_id=sent.node_id, message_type=sent.message_type)

    def replies(self, timeout_s: float, grace_s: float = math.inf) -> Iterator[tuple[int, Message]]:
        """Yield (node id, reply) as they arrive, until nothing is awaited or time is up.

        Args:
            timeout_s: Seconds to wait.
            grace_s: See `Patience`; half are most.
        """
        asked, patience = len(self._waiting), Patience(timeout_s, grace_s, self.clock)
        while self._waiting and not patience.is_over:
            if len(self._waiting) <= asked / 2:
                patience.most_arrived()
            arrived = False
            for sent, reply in self.poll():
                arrived = True
                yield sent.node_id, reply
            if not arrived:
                self.wait()

    def wait(self) -> None:
        """Wait a little before the next look."""
        self.clock.wait(self._stop, _POLL_S)

    def online(self) -> set[int]:
        """Flower's ids of the nodes that are connected."""
        return set(self._grid.get_node_ids())

    def cancel(self, message_type: str) -> list[int]:
        """Wait no longer for answers to messages of a type; returns the node ids. A late reply is never pulled."""
        left = [message_id for message_id, sent in self._waiting.items() if sent.message_type == message_type]
        return sorted(self._waiting.pop(message_id).node_id for message_id in left)
