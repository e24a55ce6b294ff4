"""A flood of requests writes some lines, and how many more there were."""

import logging

from fedglm.server.superlink import log_rate_limit as module
from fedglm.server.superlink.log_rate_limit import MAX_LINES_PER_MINUTE, limit_log_rate


def test_a_flood_writes_some_lines(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    log = logging.getLogger("uvicorn.error")
    before = list(log.filters)
    limit_log_rate()
    try:
        with caplog.at_level(logging.INFO, "uvicorn.error"):
            for number in [*range(3 * MAX_LINES_PER_MINUTE), "the last"]:
                if number == "the last":
                    log.warning("something else")
                    assert len(caplog.messages) == MAX_LINES_PER_MINUTE + 1
                    now[0] += 61
                log.warning("turned away %s", number)
        assert caplog.messages[-1] == (
            f"turned away the last ({2 * MAX_LINES_PER_MINUTE} lines like it were left out in the last minute)"
        )
    finally:
        for name in ("uvicorn.error", "asyncio", "flwr"):
            logger = logging.getLogger(name)
            for added in [one for one in logger.filters if isinstance(one, module._RateLimit)]:
                logger.removeFilter(added)
        assert log.filters == before
