"""The clock of a run, which returns the time and waits.

All waits within a run use the clock that the run was given, so that it can run in virtual time. Waits for a socket, a
process or another process's lock use the machine's own time, from the module `time`.
"""

import threading
import time
from typing import Final, Protocol


class Clock(Protocol):
    """A clock; its methods are named as those of the module `time`."""

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary start; never decreasing."""

    def time(self) -> float:
        """Return the seconds since 1970 (UTC), to compare with times that other processes have written."""

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds until the event is set; return whether it is."""


class WallClock:
    """The machine's time."""

    def monotonic(self) -> float:
        """Return the seconds since an arbitrary start."""
        return time.monotonic()

    def time(self) -> float:
        """Return the seconds since 1970 (UTC)."""
        return time.time()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds until the event is set; return whether it is."""
        return event.wait(timeout_s)


WALL_CLOCK: Final = WallClock()
