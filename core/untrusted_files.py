"""Reading files of strangers: a pipe would make a reader wait for ever, and a device has no end."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
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
    with _opened(path) as descriptor:
        blocks, left = list[bytes](), most if os.fstat(descriptor).st_size <= most else -1
        while left >= 0 and (block := os.read(descriptor, _BLOCK)):
            blocks.append(block)
            left -= len(block)  # it may grow, or have no size until it is read
    if left < 0:
        raise _too_long(path, most)
    return b"".join(blocks)


def regular_lines(path: Path, most: int, longest: int) -> Iterator[bytes]:
    """The lines of a file, one at a time, without their ends: what is read takes the memory of one line.

    Args:
        path: Of the file.
        most: Bytes that it may have.
        longest: Bytes that a line may have.

    Raises:
        OSError: As of `read_regular`, or a line is longer.
    """
    with _opened(path) as descriptor, open(descriptor, "rb", closefd=False) as file:
        left = most if os.fstat(descriptor).st_size <= most else -1
        while left >= 0 and (line := file.readline(longest + 2)):
            if len(line.removesuffix(b"\n")) > longest:
                raise OSError(errno.EFBIG, f"a line of it is longer than {longest} bytes", str(path))
            yield line.removesuffix(b"\n")
            left -= len(line)
    if left < 0:
        raise _too_long(path, most)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    # Opening a pipe would wait for somebody who writes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor).st_mode, path)
        yield descriptor
    finally:
        os.close(descriptor)


def _too_long(path: Path, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it is longer than {most} bytes", str(path))


def _check(mode: int, path: Path) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, and no file with content", str(path))
