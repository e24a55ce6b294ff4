"""What one site may ask in a while."""

import asyncio

import pytest

from fedglm.server.gateway import site_turns as module
from fedglm.server.gateway.site_turns import A_SECOND, BURST, SiteTurns


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


def ask(turns, site, times):
    async def all_of_them():
        for _ in range(times):
            async with turns.turn(site):
                pass

    asyncio.run(all_of_them())


def test_a_burst_is_served_at_once_and_a_stream_at_its_rate(slept):
    turns = SiteTurns()
    ask(turns, "a", int(BURST))
    assert sum(slept) == 0
    ask(turns, "a", 100)
    assert sum(slept) == pytest.approx(100 / A_SECOND, rel=0.05)
    slept.clear()
    ask(turns, "b", 10)
    assert sum(slept) == 0
