"""Rotation of a log that other processes append to."""

import contextlib
import os
import shutil
from pathlib import Path


def rotate_log(log: Path, max_bytes: int) -> None:
    """Copy a long log to `*.log.1`, for its owner only, and truncate it; its writers append, and go on at its start.

    Nothing happens where there is no log, or no room for the copy: no log is worth ending its process.

    Args:
        log: The log.
        max_bytes: Bytes from which it is long.
    """
    with contextlib.suppress(OSError):
        if log.stat().st_size > max_bytes:
            previous = os.open(log.with_suffix(".log.1"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with log.open("rb") as source, open(previous, "wb") as target:
                os.fchmod(previous, 0o600)
                shutil.copyfileobj(source, target)
            os.truncate(log, 0)
