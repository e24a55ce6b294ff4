"""Reading files of strangers: a pipe would make a reader wait for ever, and a device has no end."""

import errno
import os
import stat
from pathlib import Path
from typing import Final

_BLOCK: Final = 2**20


def check_regular(path: Path) -> None:
    """Raise OSError where something else than a file with content stands at `path`, or nothing does."""
    _check(os.stat(path).st_mode, path)


def read_regular(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        OSError: It cannot be read, is a pipe, a device or a folder, or longer.
    """
    # Opening a pipe would wait for somebody who writes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        _check(found.st_mode, path)
        blocks, left = list[bytes](), most if found.st_size <= most else -1
        while left >= 0 and (block := os.read(descriptor, _BLOCK)):
            blocks.append(block)
            left -= len(block)  # it may grow, or have no size until it is read
    finally:
        os.close(descriptor)
    if left < 0:
        raise OSError(errno.EFBIG, f"it is longer than {most} bytes", str(path))
    return b"".join(blocks)


def _check(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file with content", str(path))
