"""Rate limit of the log, so that a flood of requests cannot fill it: a maximum of similar lines per minute."""

import logging
import time
from typing import Final

MAX_LINES_PER_MINUTE: Final = 60
"""Maximum lines of one kind that are written per minute."""

_MINUTE_S: Final = 60.0
_MAX_KINDS: Final = 1000  # whose lines are counted


class _RateLimit(logging.Filter):
    """Drops lines beyond the limit, and appends their number to the next line of the kind."""

    def __init__(self) -> None:
        super().__init__()
        self._counts: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the line is written."""
        kind, now = (record.name, record.lineno, str(record.msg)[:40]), time.monotonic()
        began, count = self._counts.pop(kind, (now, 0))
        if now - began >= _MINUTE_S:
            if count > MAX_LINES_PER_MINUTE:
                dropped = count - MAX_LINES_PER_MINUTE
                record.msg = f"{record.msg} ({dropped} lines like it were left out in the last minute)"
            began, count = now, 0
        self._counts[kind] = (began, count + 1)
        while len(self._counts) > _MAX_KINDS:
            del self._counts[next(iter(self._counts))]
        return count < MAX_LINES_PER_MINUTE


def limit_log_rate() -> None:
    """Limit the lines that uvicorn, asyncio and Flower write."""
    limit = _RateLimit()
    for name in ("uvicorn.error", "asyncio", "flwr"):
        logging.getLogger(name).addFilter(limit)
