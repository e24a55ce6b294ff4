"""Sends a node's replies as soon as they are made, however many messages they answer.

Flower's SuperNode waits for one reply after each message that it has pulled. When a message came twice, as after a
server's death, there is one reply too many: from then on each reply waits until the next message comes, and the round
waits for it until the server asks again. Here the SuperNode sends all replies until no message is being answered, and
then pulls again.
"""

import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_RUN_ID = 0  # of no run: makes Flower's loop send, though nothing was pulled
_POLL_S = 0.2
_IDLE_S = 1.0  # a pulled message is usually taken up within that time; otherwise its reply leaves a little later


class WorkTracker:
    """Tracks the messages that are being answered: updated by the threads that answer, read by the one that sends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_progress, self._last_change = 0, time.monotonic()
        self._completed = self._reported = 0

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count a message as being answered while the block runs."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def is_idle(self, since: float) -> bool:
        """Return whether no message was being answered for a while.

        Args:
            since: When the last message was pulled, in seconds of the monotonic clock.
        """
        with self._lock:
            return not self._in_progress and time.monotonic() - max(since, self._last_change) > _IDLE_S

    def take_completed(self) -> bool:
        """Return whether a message was answered since the last call."""
        with self._lock:
            has_new, self._reported = self._completed != self._reported, self._completed
            return has_new

    def _count(self, change: int) -> None:
        with self._lock:
            self._in_progress, self._last_change = self._in_progress + change, time.monotonic()
            self._completed += change < 0


class _TruthyEmptyList(list[Any]):
    """An empty list that is true, so that Flower's loop does not wait for replies."""

    def __bool__(self) -> bool:
        return True


class _NonBlockingState:
    """Flower's state of a node, on which its loop never waits for a reply."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def get_messages_legacy(self, **filters: Any) -> list[Any]:
        """Return the available replies."""
        return self._state.get_messages_legacy(**filters) or _TruthyEmptyList()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)


def install_reply_sender(work: WorkTracker) -> None:
    """Make the SuperNode of this process send all replies before it pulls the next message.

    Args:
        work: Tracks the messages that are being answered.
    """
    flower = importlib.import_module("flwr.supernode.start_client_internal")
    push, pull = vars(flower)["_push_messages"], vars(flower)["_pull_and_store_message"]

    def push_all(state: Any, *arguments: Any, **options: Any) -> None:
        pulled = time.monotonic()
        while True:
            idle = work.is_idle(pulled)
            work.take_completed()  # before the push, so that replies that are completed meanwhile are sent too
            push(_NonBlockingState(state), *arguments, **options)
            if idle:
                return
            time.sleep(_POLL_S)

    def pull_or_push(*arguments: Any, **options: Any) -> int | None:
        run_id: int | None = pull(*arguments, **options)
        return _RUN_ID if run_id is None and work.take_completed() else run_id

    vars(flower).update(_push_messages=push_all, _pull_and_store_message=pull_or_push)
