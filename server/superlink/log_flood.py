"""A log that a flood of requests cannot fill: of lines that say the same, so many a minute are written."""

import logging
import time
from typing import Final

LINES: Final = 60
"""Lines of one kind that are written in a minute."""

_MINUTE_S: Final = 60.0
_KINDS: Final = 1000  # that are remembered


class _Damper(logging.Filter):
    """Lets pass what is within bounds, and says of the rest how much it was."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        kind, now = (record.name, record.lineno, str(record.msg)[:40]), time.monotonic()
        began, count = self._seen.pop(kind, (now, 0))
        if now - began >= _MINUTE_S:
            if count > LINES:
                record.msg = f"{record.msg} ({count - LINES} lines like it were left out in the last minute)"
            began, count = now, 0
        self._seen[kind] = (began, count + 1)
        while len(self._seen) > _KINDS:
            del self._seen[next(iter(self._seen))]
        return count < LINES


def damp() -> None:
    """Bound what uvicorn, asyncio and Flower write."""
    damper = _Damper()
    for name in ("uvicorn.error", "asyncio", "flwr"):
        logging.getLogger(name).addFilter(damper)
