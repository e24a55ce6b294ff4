"""A timeout for replies that becomes shorter once most have arrived."""

from fedglm.core.clock import Clock


class Deadline:
    """A deadline for replies; time starts when it is made.

    Args:
        timeout_s: Seconds until the deadline.
        grace_s: Once most replies have arrived, the others have as long again as those took, but at least this many
            seconds, and never beyond the timeout.
        clock: Clock of the run.

    Attributes:
        duration_s: Seconds from the start to the deadline, as known so far.
    """

    def __init__(self, timeout_s: float, grace_s: float, clock: Clock) -> None:
        self.duration_s, self._grace_s, self._clock = timeout_s, grace_s, clock
        self._start = clock.monotonic()
        self._is_grace_started = False

    @property
    def is_past(self) -> bool:
        """Whether the deadline has passed."""
        return self._clock.monotonic() >= self._start + self.duration_s

    def start_grace(self) -> None:
        """Start the grace period, because most replies have arrived; only the first call has an effect."""
        if not self._is_grace_started:
            self._is_grace_started = True
            elapsed = self._clock.monotonic() - self._start
            self.duration_s = min(self.duration_s, elapsed + max(elapsed, self._grace_s))
