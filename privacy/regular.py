"""Reading files of strangers: a pipe would make a reader wait for ever, and a device has no end."""

import errno
import os
import stat
from pathlib import Path


def check_regular(path: Path) -> None:
    """Raise OSError where something else than a file with content stands at `path`, or nothing does."""
    _check(os.stat(path).st_mode, path)


def read_regular(path: Path, most: int) -> bytes:
    """The content of a file, and of a longer one its first `most` bytes and one more.

    Raises:
        OSError: It cannot be read, or is a pipe, a device or a folder.
    """
    # Opening a pipe would wait for somebody who writes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most + 1)


def _check(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file with content", str(path))
