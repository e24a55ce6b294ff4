"""What one site may ask of the SuperLink at a time and in a while: beyond that it waits, then it is turned away.

All sites share one database, one pool of threads and one log. A node of ours has up to four requests under way: its
loop, its sign of life, and two parts of a message.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fedglm.core.errors import FedglmError

AT_ONCE = 4
"""Requests of one site that are worked on at a time."""

WAITING = 16
"""Requests of one site that wait for that; one more is turned away."""

A_SECOND, BURST = 50.0, 500.0
"""Requests of one site in the long run, and above that for once: a message may come in hundreds of parts."""


class Crowded(FedglmError):
    """The site asks too much at a time; a node tries again after a while."""


@dataclass
class _Turn:
    alone: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))
    waiting: int = 0
    left: float = BURST
    counted: float = field(default_factory=lambda: time.monotonic())

    def pause_s(self) -> float:
        """Take one request from what is left; how long it must wait for that."""
        now = time.monotonic()
        self.left = min(BURST, self.left + A_SECOND * (now - self.counted)) - 1
        self.counted = now
        return max(0.0, -self.left / A_SECOND)


class SiteTurns:
    """The turns of all sites."""

    def __init__(self) -> None:
        self._turns: dict[str, _Turn] = {}

    @asynccontextmanager
    async def turn(self, site: str) -> AsyncIterator[None]:
        """Work on a request of the site while the block runs, once it is its turn.

        Raises:
            Crowded: Too many wait already.
        """
        own = self._turns.setdefault(site, _Turn())
        if own.waiting >= WAITING:
            raise Crowded(f"{site} has {AT_ONCE + WAITING} requests under way")
        own.waiting += 1
        try:
            await own.alone.acquire()
        finally:
            own.waiting -= 1
        try:
            await asyncio.sleep(own.pause_s())
            yield
        finally:
            own.alone.release()
