"""Messages to nodes and their replies, received one by one as they arrive."""

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
from fedglm.server.rounds.deadline import Deadline

LOG = logging.getLogger(__name__)

_UNREADABLE = (DecodeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""Exceptions of Flower for a reply whose bytes are no valid message, from `inflate` and the constructors of records; an
unreachable SuperLink raises none of them."""

_MIN_PAUSE_S: Final = 0.002
_MAX_PAUSE_S: Final = 0.05
"""Seconds between two polls, right after a message and at most."""

PULL_SIZE = 32
"""Maximum number of replies to pull at a time: a grid holds all replies of one call in memory."""


@dataclass(frozen=True)
class Sent:
    """A sent message that awaits its reply.

    Attributes:
        node_id: Flower id of the receiving node.
        message_type: Flower message type: `train` or `query`, or one with an action such as `query.seal`.
    """

    node_id: int
    message_type: str


class Stopped(FedglmError, RuntimeError):
    """The stop event was set while the server waited for replies."""


class Exchange:
    """Sends messages to nodes and receives their replies.

    Flower's own `send_and_receive` returns all replies at once; pulling a few at a time keeps the server's memory
    constant in the number of nodes, and lets a reply be answered within the round.

    Args:
        grid: Flower's connection to the nodes.
        stop: Event that ends waiting with `Stopped`.
        clock: Clock of the run, also for all that wait for replies of this exchange.

    Attributes:
        clock: Clock of the run.
    """

    def __init__(self, grid: Grid, stop: threading.Event, *, clock: Clock = WALL_CLOCK) -> None:
        self._grid, self._stop, self.clock = grid, stop, clock
        self._pending: dict[str, Sent] = {}
        self._pause_s = _MIN_PAUSE_S

    def send(self, contents: Iterable[tuple[int, RecordDict]], message_type: str, server_round: int) -> None:
        """Push one message to each node.

        Args:
            contents: Pairs of Flower node id and content.
            message_type: Flower message type, as in `Sent`.
            server_round: Number of the round, which becomes the group id of the messages.
        """
        for node_id, content in contents:
            message = Message(content, dst_node_id=node_id, message_type=message_type, group_id=str(server_round))
            for message_id in self._grid.push_messages([message]):
                self._pending[message_id] = Sent(node_id, message_type)
        self._pause_s = _MIN_PAUSE_S

    def poll(self, message_type: str | None = None) -> Iterator[tuple[Sent, Message]]:
        """Poll once for replies, and yield each with the message that it answers; more may be sent meanwhile.

        A reply that cannot be read is yielded as a message without content.

        Args:
            message_type: Polls for replies to messages of this type; None for all.

        Raises:
            Stopped: The stop event was set.
        """
        if self._stop.is_set():
            raise Stopped("stopped on request")
        pending = self._list_pending(message_type)
        for start in range(0, len(pending), PULL_SIZE):
            for message_id, reply in self._pull(pending[start : start + PULL_SIZE]):
                sent = self._pending.pop(message_id, None)
                self._pause_s = _MIN_PAUSE_S
                if sent is not None:
                    yield sent, reply

    def _pull(self, message_ids: list[str]) -> Iterator[tuple[str, Message]]:
        """Yield the available replies, each with the id of the message that it answers."""
        try:
            for reply in self._grid.pull_messages(message_ids):
                yield reply.metadata.reply_to_message_id, reply
        except _UNREADABLE:
            if len(message_ids) > 1:  # at least one; others that Flower handed out with it are requested again in time
                for message_id in message_ids:
                    yield from self._pull([message_id])
            elif (sent := self._pending.get(message_ids[0])) is not None:
                LOG.exception("the reply of node %d is no message", sent.node_id)
                yield message_ids[0], Message(RecordDict(), dst_node_id=sent.node_id, message_type=sent.message_type)

    def replies(
        self, timeout_s: float, grace_s: float = math.inf, *, message_type: str | None = None
    ) -> Iterator[tuple[int, Message]]:
        """Yield (node id, reply) as they arrive, until no message is pending or the deadline has passed.

        Args:
            timeout_s: Seconds to wait.
            grace_s: Grace period, as in `Deadline`; it starts once half of the replies have arrived.
            message_type: Waits for replies to messages of this type, and leaves others to those who wait for them; None
                waits for all.

        Raises:
            Stopped: The stop event was set.
        """
        sent_count, deadline = len(self._list_pending(message_type)), Deadline(timeout_s, grace_s, self.clock)
        while (left := len(self._list_pending(message_type))) and not deadline.is_past:
            if left <= sent_count / 2:
                deadline.start_grace()
            arrived = False
            for sent, reply in self.poll(message_type):
                arrived = True
                yield sent.node_id, reply
            if not arrived:
                self.wait()

    def wait(self) -> None:
        """Wait for the time between two polls, or until the stop event is set.

        It doubles with each poll that brought nothing, so that short rounds are not spent waiting.
        """
        self.clock.wait(self._stop, self._pause_s)
        self._pause_s = min(2 * self._pause_s, _MAX_PAUSE_S)

    def get_online(self) -> set[int]:
        """Return Flower's ids of the connected nodes."""
        return set(self._grid.get_node_ids())

    def cancel(self, message_type: str) -> list[int]:
        """Stop waiting for replies to messages of a type; late ones are never pulled.

        Returns:
            Ids of the nodes that had not replied, ascending.
        """
        return sorted(self._pending.pop(message_id).node_id for message_id in self._list_pending(message_type))

    def _list_pending(self, message_type: str | None) -> list[str]:
        """Return the ids of the messages of a type, None for all, that await their replies."""
        pending = self._pending.items()
        return [message_id for message_id, sent in pending if message_type in (None, sent.message_type)]
