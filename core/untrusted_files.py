"""Reading untrusted files: a pipe would block a reader for ever, and a device has no end."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_BLOCK: Final = 2**20


def check_regular(path: Path) -> None:
    """Check that `path` is a regular file.

    Raises:
        OSError: It is a pipe, a device or a folder, or does not exist.
    """
    _check_mode(os.stat(path).st_mode, path)


def read_regular(path: Path, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes` bytes.

    Raises:
        OSError: The file cannot be read, is a pipe, a device or a folder, or is longer.
    """
    return b"".join(read_regular_blocks(path, max_bytes))


def read_regular_blocks(path: Path, max_bytes: int) -> Iterator[bytes]:
    """Yield a regular file of at most `max_bytes` bytes in blocks of up to a MiB.

    Raises:
        OSError: As by `read_regular`.
    """
    with _open_regular(path) as descriptor:
        left = max_bytes if os.fstat(descriptor).st_size <= max_bytes else -1
        while left >= 0 and (block := os.read(descriptor, _BLOCK)):
            left -= len(block)  # it may grow, or have no size until it is read
            if left >= 0:
                yield block
    if left < 0:
        raise _too_long_error(path, max_bytes)


def read_regular_lines(path: Path, max_bytes: int, max_line: int) -> Iterator[bytes]:
    """Yield the lines of a regular file one at a time, without line ends, in the memory of one line.

    Args:
        path: The file.
        max_bytes: Maximum length of the file in bytes.
        max_line: Maximum length of a line in bytes.

    Raises:
        OSError: As by `read_regular`, or a line is longer.
    """
    with _open_regular(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        left = max_bytes if os.fstat(descriptor).st_size <= max_bytes else -1
        while left >= 0 and (line := file.readline(max_line + 2)):
            if len(line.removesuffix(b"\n")) > max_line:
                raise OSError(errno.EFBIG, f"a line of it is longer than {max_line} bytes", str(path))
            yield line.removesuffix(b"\n")
            left -= len(line)
    if left < 0:
        raise _too_long_error(path, max_bytes)


@contextlib.contextmanager
def _open_regular(path: Path) -> Iterator[int]:
    # Opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check_mode(os.fstat(descriptor).st_mode, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _too_long_error(path: Path, max_bytes: int) -> OSError:
    return OSError(errno.EFBIG, f"it is longer than {max_bytes} bytes", str(path))


def _check_mode(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file with content", str(path))
