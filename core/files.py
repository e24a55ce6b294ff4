"""Atomic writes: after a crash a file is complete or absent, never half-written.

A file is written under a temporary name in its folder, flushed to the disk, and renamed. A reader therefore sees the
old content or the new one. When writing fails (a full disk, a signal) the temporary file is removed and the old content
stays.
"""

import contextlib
import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fedglm.core.errors import FedglmError

FREE_SOME = "free some space, then run again (a simulation goes on with --resume)"
"""Remedy for a full disk."""


class StorageError(FedglmError, OSError):
    """A file could not be written; the message names it and the remedy."""


class DiskFullError(StorageError):
    """A file could not be written because the disk, or the user's quota, is full."""


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of the system, SQLite or safetensors, or one raised from it, means a full disk."""
    import sqlite3  # imported here, because few programs get so far

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DiskFullError) or _find_errno(cause) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            return True
        cause = cause.__cause__
    return False


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Convert write errors in the block to a `StorageError` that names `path` and the remedy."""
    try:
        yield
    except _list_write_errors() as exc:
        if is_disk_full(exc):
            raise DiskFullError(f"cannot write {path}: the disk is full: {FREE_SOME}") from exc
        raise StorageError(f"cannot write {path}: {getattr(exc, 'strerror', None) or exc}") from exc


def _find_errno(error: BaseException) -> int | None:
    """Return the errno of an error; safetensors' own type has it only in its text."""
    if isinstance(error, OSError):
        return error.errno
    safetensors = sys.modules.get("safetensors")
    if safetensors is None or not isinstance(error, safetensors.SafetensorError):
        return None
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else None


def _list_write_errors() -> tuple[type[Exception], ...]:
    """List what writing may raise; safetensors' error only where it is loaded, since an auditor may not have it."""
    loaded = sys.modules.get("safetensors")
    return (OSError,) if loaded is None else (OSError, loaded.SafetensorError)


def write_atomically(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace the file at `path` with `data` (text as UTF-8), durably and in one step.

    Args:
        path: The file; its folder is created if missing.
        data: The complete content.
        mode: File permissions; 0o600 for what nobody else on the machine may read.

    Raises:
        StorageError: The file could not be written; the previous content of `path` is unchanged.
    """
    with replaced_file(path, mode=mode) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replaced_file(path: Path, *, mode: int = 0o644) -> Iterator[IO[bytes]]:
    """Yield a file to write to, which replaces the file at `path` at the end of the block, durably and in one step.

    Args:
        path: The file; its folder is created if missing.
        mode: File permissions.

    Raises:
        StorageError: The file could not be written. Then, and where the block raises, `path` is unchanged.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, mode)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        sync_folder(path.parent)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield an empty scratch file, readable by its owner alone, and link it to `path` at the end of the block.

    The block must flush what it writes to the disk itself. An existing file at `path` is never replaced, and no reader
    sees a half-written one.

    Raises:
        FileExistsError: There is a file at `path` already.
        StorageError: The file could not be written.
    """
    exists = False
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600 from the start
        os.close(descriptor)
        try:
            yield Path(name)
            try:
                os.link(name, path)  # unlike a rename it fails where a file exists
            except FileExistsError:
                exists = True
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)
        sync_folder(path.parent)
    if exists:
        raise FileExistsError(errno.EEXIST, "there is a file already", str(path))


def create_privately(path: Path, data: bytes) -> None:
    """Write `data` to a new file at `path`, readable by its owner alone; raises as `new_file`."""
    with new_file(path) as scratch, scratch.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush the folder's entries to the disk, so that a rename in it survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
