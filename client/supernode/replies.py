"""When a node sends and asks: replies leave as soon as they are made, messages are asked for soon after others.

Flower's SuperNode waits for one reply after each message that it has pulled. When a message came twice, as after a
server's death, there is one reply too many: from then on each reply waits until the next message comes, and the round
waits for it until the server asks again. Here the SuperNode sends all replies until no message is being answered, and
then pulls again.

Flower pulls every 3 s, which is longer than a round of a small model takes. Here the pause grows with the time since
the last message, from a fifth of a second to those 3 s: what it adds to a round is a share of the round, and an idle
node asks as seldom as before.
"""

import importlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_RUN_ID = 0  # of no run: makes Flower's loop send, though nothing was pulled
_POLL_S = 0.2
_IDLE_S = 1.0  # a pulled message is usually taken up within that time; otherwise its reply leaves a little later

_MIN_PAUSE_S: Final = 0.2
_MAX_PAUSE_S: Final = 3.0
"""Flower's own pause, which it makes where nothing was pulled."""
_SHARE: Final = 0.2
"""Pause before the next pull, as a share of the time since the last message."""


class WorkTracker:
    """Tracks the messages that are being answered: updated by the threads that answer, read by the one that sends."""

    def __init__(self) -> None:
        self._changed = threading.Condition()  # guards all below
        self._in_progress, self._last_change = 0, time.monotonic()
        self._completed = self._reported = 0
        self._last_completion = -1.0
        self._pulled = threading.Event()

    @contextmanager
    def track(self) -> Iterator[None]:
        """Count a message as being answered while the block runs."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def is_idle(self, since: float) -> bool:
        """Return whether no message is being answered, and none is about to be.

        Args:
            since: When the last message was pulled, in seconds of the monotonic clock.
        """
        with self._changed:
            waited = time.monotonic() - max(since, self._last_change) > _IDLE_S
            return not self._in_progress and (waited or self._last_completion >= since)

    def take_completed(self) -> bool:
        """Return whether a message was answered since the last call."""
        with self._changed:
            has_new, self._reported = self._completed != self._reported, self._completed
            return has_new

    def wait_for_completion(self, seconds: float) -> None:
        """Wait until a message has been answered that `take_completed` has not reported, or for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._completed != self._reported, seconds)

    def announce_message(self) -> None:
        """Wake who waits for a message to answer."""
        self._pulled.set()

    def wait_for_message(self, seconds: float) -> None:
        """Wait until a message has been pulled, or for so long."""
        if self._pulled.wait(seconds):
            self._pulled.clear()

    def _count(self, change: int) -> None:
        with self._changed:
            self._in_progress, self._last_change = self._in_progress + change, time.monotonic()
            if change < 0:
                self._completed, self._last_completion = self._completed + 1, self._last_change
            self._changed.notify_all()


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

    last_pulled = -_MAX_PAUSE_S / _SHARE

    def push_all(state: Any, *arguments: Any, **options: Any) -> None:
        pulled = time.monotonic()
        while True:
            idle = work.is_idle(pulled)
            work.take_completed()  # before the push, so that replies that are completed meanwhile are sent too
            push(_NonBlockingState(state), *arguments, **options)
            if idle:
                return
            work.wait_for_completion(_POLL_S)

    def pull_or_push(*arguments: Any, **options: Any) -> int | None:
        nonlocal last_pulled
        while True:
            run_id: int | None = pull(*arguments, **options)
            if run_id is not None:
                last_pulled = time.monotonic()
                work.announce_message()
                return run_id
            if work.take_completed():
                return _RUN_ID
            pause = max(_MIN_PAUSE_S, _SHARE * (time.monotonic() - last_pulled))
            if pause >= _MAX_PAUSE_S:
                return None
            work.wait_for_completion(pause)

    vars(flower).update(_push_messages=push_all, _pull_and_store_message=pull_or_push)
