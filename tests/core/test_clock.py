"""The machine's time, behind the protocol that runs wait by."""

import threading
import time

from fedglm.core.clock import WALL_CLOCK


def test_it_tells_the_machines_time():
    before = time.monotonic(), time.time()
    times = WALL_CLOCK.monotonic(), WALL_CLOCK.time()
    assert all(early <= now <= early + 5 for early, now in zip(before, times, strict=True))


def test_it_waits_until_the_event_or_the_end():
    event = threading.Event()
    began = time.monotonic()
    assert not WALL_CLOCK.wait(event, 0.02)
    assert time.monotonic() - began >= 0.015
    threading.Timer(0.02, event.set).start()
    assert WALL_CLOCK.wait(event, 30.0)
    assert time.monotonic() - began < 20
