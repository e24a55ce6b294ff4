"""Sends a node's answers when they are made, however many messages they answer.

Flower's SuperNode waits for one answer after each message that it has pulled. When a message came twice, as after a
server's death, one answer is too many: from then on each waits until the next message comes, and the round waits for it
until the server asks again. Here the SuperNode sends all answers until nothing is in work, and then pulls on.
"""

import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_A_RUN = 0  # of no number: makes Flower's loop send, though nothing was pulled
_POLL_S = 0.2
_IDLE_S = 1.0  # a message that was just pulled is usually taken up within that; else its answer leaves a little later


class Work:
    """How much is in work: written by the threads that answer, read by the one that sends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._answering, self._changed = 0, time.monotonic()
        self._answered = self._seen = 0

    @contextmanager
    def answering(self) -> Iterator[None]:
        """A message is being answered while the block runs."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def is_idle(self, since: float) -> bool:
        """Whether nothing was in work for a while.

        Args:
            since: When the last message was pulled, by the monotonic clock.
        """
        with self._lock:
            return not self._answering and time.monotonic() - max(since, self._changed) > _IDLE_S

    def take(self) -> bool:
        """Whether anything was answered since the last time this was asked."""
        with self._lock:
            new, self._seen = self._answered != self._seen, self._answered
            return new

    def _count(self, change: int) -> None:
        with self._lock:
            self._answering, self._changed = self._answering + change, time.monotonic()
            self._answered += change < 0


class _Nothing(list[Any]):
    """No answers; true, so that Flower's loop does not wait for some."""

    def __bool__(self) -> bool:
        return True


class _Unwaiting:
    """Flower's state of a node, from which it never waits for an answer."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def get_messages_legacy(self, **which: Any) -> list[Any]:
        """The answers that there are."""
        return self._state.get_messages_legacy(**which) or _Nothing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def send_all(work: Work) -> None:
    """Have the SuperNode of this process send all answers before it pulls the next message.

    Args:
        work: Of the threads that answer.
    """
    flower = importlib.import_module("flwr.supernode.start_client_internal")
    send_some, pull = vars(flower)["_push_messages"], vars(flower)["_pull_and_store_message"]

    def send(state: Any, *arguments: Any, **named: Any) -> None:
        pulled = time.monotonic()
        while True:
            idle = work.is_idle(pulled)
            work.take()  # before the look, so that what is finished meanwhile is sent too
            send_some(_Unwaiting(state), *arguments, **named)
            if idle:
                return
            time.sleep(_POLL_S)

    def pull_or_send(*arguments: Any, **named: Any) -> int | None:
        found: int | None = pull(*arguments, **named)
        return _A_RUN if found is None and work.take() else found

    vars(flower).update(_push_messages=send, _pull_and_store_message=pull_or_send)
