"""How long answers are waited for."""

from fedglm.core.clock import Clock


class Patience:
    """Some time, and less once most have come; it runs from when it is made.

    Args:
        timeout_s: Seconds.
        grace_s: Once most have come, the rest has as long again as those took, and so many seconds at the least.
        clock: Tells the time.

    Attributes:
        lasts_s: Seconds that the wait lasts in all, as far as is known.
    """

    def __init__(self, timeout_s: float, grace_s: float, clock: Clock) -> None:
        self.lasts_s, self._grace_s, self._clock = timeout_s, grace_s, clock
        self._start = clock.monotonic()
        self._most_are_there = False

    @property
    def is_over(self) -> bool:
        """Whether nothing more is waited for."""
        return self._clock.monotonic() >= self._start + self.lasts_s

    def most_arrived(self) -> None:
        """Most are there by now; the first time that this is said counts."""
        if not self._most_are_there:
            self._most_are_there = True
            took = self._clock.monotonic() - self._start
            self.lasts_s = min(self.lasts_s, took + max(took, self._grace_s))
