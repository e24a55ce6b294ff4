"""Rate limits of each site: concurrent requests, and a token bucket; requests wait, and beyond a limit are rejected.

All sites share one database, one thread pool and one log. A node has at most four requests under way: its message loop,
its heartbeat, and two objects of a message.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from fedglm.core.errors import FedglmError

MAX_CONCURRENT = 4
"""Requests of one site that are processed at a time."""

MAX_WAITING = 16
"""Requests of one site that may wait for that; further ones are rejected."""

RATE_PER_S, BURST = 50.0, 500.0
"""Refill rate and size of each site's token bucket, in requests: a message may have hundreds of objects."""


class TooManyRequests(FedglmError):
    """A site has too many requests under way; a node tries again after a while."""


@dataclass
class _SiteState:
    """Semaphore and token bucket of one site."""

    semaphore: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONCURRENT))
    waiting: int = 0
    tokens: float = BURST
    updated: float = field(default_factory=lambda: time.monotonic())

    def take_token(self) -> float:
        """Take a token for one request; return the seconds until it is available."""
        now = time.monotonic()
        self.tokens = min(BURST, self.tokens + RATE_PER_S * (now - self.updated)) - 1
        self.updated = now
        return max(0.0, -self.tokens / RATE_PER_S)


class SiteRateLimits:
    """Rate limits of all sites, each counted by itself."""

    def __init__(self) -> None:
        self._sites: dict[str, _SiteState] = {}

    @asynccontextmanager
    async def admit(self, site: str) -> AsyncIterator[None]:
        """Wait until a request of the site may be processed, and count it while the block runs.

        Raises:
            TooManyRequests: Too many requests of the site wait already.
        """
        own = self._sites.setdefault(site, _SiteState())
        if own.waiting >= MAX_WAITING:
            raise TooManyRequests(f"{site} has {MAX_CONCURRENT + MAX_WAITING} requests under way")
        own.waiting += 1
        try:
            await own.semaphore.acquire()
        finally:
            own.waiting -= 1
        try:
            await asyncio.sleep(own.take_token())
            yield
        finally:
            own.semaphore.release()
