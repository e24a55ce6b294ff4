"""A lock that is a file: held by one process at a time, and free again however that process ends."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedglm.core.files import storage_errors


@contextmanager
def held(path: Path, *, patience_s: float = 0.0) -> Iterator[bool]:
    """Hold a lock file while the block runs; however the process ends, it is then free again.

    Args:
        path: Is made if need be, and stays.
        patience_s: How long to wait for another process to let go of it.

    Yields:
        Whether it is held; False where another process holds it.

    Raises:
        StorageError: The file cannot be made.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + patience_s
        while not (locked := _locked(descriptor)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield locked
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
