"""Sending to nodes and taking their replies one by one, as they come, until all have answered or time is up."""

import threading
import time
from collections.abc import Iterable, Iterator

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

PULLED = 32
"""Replies asked for at a time: a grid holds all of one call in memory."""


class Stopped(RuntimeError):
    """Somebody asked the server to stop while it waited for replies."""


class Exchange:
    """Messages under way between the server and its nodes.

    Flower's own `send_and_receive` returns all replies at once; pulling a few at a time keeps the server's memory flat
    in the number of nodes, and lets a reply be answered within the round.

    Args:
        grid: Flower's way to the nodes.
        stop: When set, waiting ends with `Stopped`.
        poll_s: Seconds between two looks for replies.
    """

    def __init__(self, grid: Grid, stop: threading.Event, poll_s: float = 0.05) -> None:
        self._grid, self._stop, self._poll_s = grid, stop, poll_s
        self._waiting: dict[str, int] = {}

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
                self._waiting[message_id] = node_id

    def replies(self, timeout_s: float) -> Iterator[tuple[int, Message]]:
        """Yield (node id, reply) as they arrive; more may be sent meanwhile. Ends when all answered or time is up.

        Raises:
            Stopped: The stop event was set.
        """
        deadline = time.monotonic() + timeout_s
        while self._waiting and time.monotonic() < deadline:
            if self._stop.is_set():
                raise Stopped("stopped on request")
            arrived = False
            waiting = list(self._waiting)
            for start in range(0, len(waiting), PULLED):
                for reply in self._grid.pull_messages(waiting[start : start + PULLED]):
                    arrived = True
                    node_id = self._waiting.pop(reply.metadata.reply_to_message_id, None)
                    if node_id is not None:
                        yield node_id, reply
            if not arrived:
                self._stop.wait(self._poll_s)

    def abandon(self) -> list[int]:
        """Forget what has not been answered; returns the node ids. A late reply is never pulled."""
        silent = sorted(self._waiting.values())
        self._waiting.clear()
        return silent
