"""A lock file: held by one process at a time, and released however that process ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedglm.core.files import storage_errors


@contextmanager
def hold_lock(path: Path, *, patience_s: float = 0.0) -> Iterator[bool]:
    """Hold a lock file while the block runs; the lock is released however the process ends.

    Args:
        path: The lock file; it is created if missing, and stays.
        patience_s: Maximum wait in seconds for another process to release it.

    Yields:
        Whether the lock is held; False where another process holds it.

    Raises:
        StorageError: The file cannot be created.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience_s
        while not (locked := _try_lock(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield locked
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
