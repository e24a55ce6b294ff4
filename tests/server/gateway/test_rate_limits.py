"""What one site may ask in a while."""

import asyncio

import pytest

from fedglm.server.gateway import rate_limits as module
from fedglm.server.gateway.rate_limits import BURST, RATE_PER_S, SiteRateLimits


@pytest.fixture
def slept(monkeypatch):
    """Seconds that requests wait for their turn, of a clock that only they move."""
    now, waits = [0.0], []

    async def sleep(seconds):
        waits.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return waits


def ask(limits, site, times):
    async def all_of_them():
        for _ in range(times):
            async with limits.admit(site):
                pass

    asyncio.run(all_of_them())


def test_a_burst_is_served_at_once_and_a_stream_at_its_rate(slept):
    limits = SiteRateLimits()
    ask(limits, "a", int(BURST))
    assert sum(slept) == 0
    ask(limits, "a", 100)
    assert sum(slept) == pytest.approx(100 / RATE_PER_S, rel=0.05)
    slept.clear()
    ask(limits, "b", 10)
    assert sum(slept) == 0
