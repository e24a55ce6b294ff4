"""The clock that a run goes by: it tells the time, and it waits.

Whatever waits within a run asks the one clock that it was given, so that a run can go by virtual time. What waits for
a socket, a process or another process's lock goes by the machine's own time, and asks `time` for it.
"""

import threading
import time
from typing import Final, Protocol


class Clock(Protocol):
    """Time, and waiting for it to pass; methods that tell it are named as those of the module `time`."""

    def monotonic(self) -> float:
        """Seconds since some moment; never fewer than before."""

    def time(self) -> float:
        """Seconds since 1970 (UTC), to compare with what other processes have written down."""

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until the event is set, for so many seconds at the most; returns whether it is."""


class WallClock:
    """The machine's time."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    def time(self) -> float:
        """Seconds since 1970 (UTC)."""
        return time.time()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait until the event is set, for so many seconds at the most; returns whether it is."""
        return event.wait(timeout_s)


WALL_CLOCK: Final = WallClock()
