"""Time that passes only where somebody waits for it."""


class VirtualClock:
    """A `fedglm.core.clock.Clock` whose waits take no time.

    Attributes:
        now: Seconds since it was made.
        waits: how often somebody waited.
    """

    def __init__(self, epoch: float = 1_700_000_000.0) -> None:
        self.now, self.waits, self._epoch = 0.0, 0, epoch

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self._epoch + self.now

    def wait(self, event, timeout_s: float) -> bool:
        if not event.is_set():
            self.waits += 1
            self.now += timeout_s
        return event.is_set()
