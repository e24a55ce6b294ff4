"""Files that survive a crash: whole or absent, never half-written.

A file is written to a temporary name beside its place, flushed to the disk, and renamed. A reader therefore sees the
old content or the new one. When writing fails (a full disk, a signal) the temporary file is removed and the old
content stays.
"""

import contextlib
import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedglm.core.errors import FedglmError

FREE_SOME = "free some space, then run again (a simulation goes on with --resume)"
"""What helps where a disk is full."""


class StorageError(FedglmError, OSError):
    """A file could not be written; the message names it and the remedy."""


class DiskFullError(StorageError):
    """There is no room for a file: the disk, or the user's share of it, is full."""


def is_disk_full(error: BaseException) -> bool:
    """Whether an error of the system's, SQLite's or safetensors', or one raised from it, is for a full disk."""
    import sqlite3  # here, for few programs ever get so far

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, DiskFullError) or _errno(cause) in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            return True
        cause = cause.__cause__
    return False


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the errors of writing in the block into a `StorageError` that names `path` and the remedy."""
    try:
        yield
    except _errors() as exc:
        if is_disk_full(exc):
            raise DiskFullError(f"cannot write {path}: the disk is full: {FREE_SOME}") from exc
        raise StorageError(f"cannot write {path}: {getattr(exc, 'strerror', None) or exc}") from exc


def _errno(error: BaseException) -> int | None:
    """The system's number of an error; safetensors' own type has it in no other place than its text."""
    if isinstance(error, OSError):
        return error.errno
    safetensors = sys.modules.get("safetensors")
    if safetensors is None or not isinstance(error, safetensors.SafetensorError):
        return None
    number = re.search(r"\(os error (\d+)\)", str(error))
    return int(number[1]) if number else None


def _errors() -> tuple[type[Exception], ...]:
    """What writing may raise; safetensors' own error where that is loaded, for a reader of records may not have it."""
    loaded = sys.modules.get("safetensors")
    return (OSError,) if loaded is None else (OSError, loaded.SafetensorError)


def write_atomically(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace the file at `path` with `data` (text as UTF-8), durably and in one step.

    Args:
        path: The file; its folder is made if it is not there.
        data: The whole content.
        mode: The file's rights; 0o600 for what nobody else on the machine may read.

    Raises:
        StorageError: The file could not be written; what stood at `path` before still stands there.
    """
    content = data.encode() if isinstance(data, str) else data
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
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
    """Give an empty scratch file, readable by its owner alone, and put it at `path` when the block is through.

    What the block writes it must flush to the disk itself. A file at `path` is never replaced, and nobody sees one that
    is half-written.

    Raises:
        FileExistsError: There is a file at `path` already.
        StorageError: The file could not be written.
    """
    taken = False
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600 from the start
        os.close(descriptor)
        try:
            yield Path(name)
            try:
                os.link(name, path)  # unlike a rename it fails where a file is
            except FileExistsError:
                taken = True
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)
        sync_folder(path.parent)
    if taken:
        raise FileExistsError(errno.EEXIST, "there is a file already", str(path))


def create_privately(path: Path, data: bytes) -> None:
    """Write `data` to a new file at `path`; raises as `new_file`."""
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
