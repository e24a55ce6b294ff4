"""Files that survive a crash: whole or absent, never half-written.

A file is written to a temporary name beside its place, flushed to the disk, and renamed. A reader therefore sees the
old content or the new one. When writing fails (a full disk, a signal) the temporary file is removed and the old
content stays.
"""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fedglm.core.errors import FedglmError

FREE_SOME = "free some space, then run again (a simulation goes on with --resume)"
"""What helps where a disk is full."""


class StorageError(FedglmError, OSError):
    """A file could not be written; the message names it and the remedy."""


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the errors of writing in the block into a `StorageError` that names `path` and the remedy."""
    try:
        yield
    except _errors() as exc:
        # safetensors has an error of its own, whose text ends with the system's number.
        full = getattr(exc, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in str(exc)
        reason = f"the disk is full: {FREE_SOME}" if full else getattr(exc, "strerror", None) or str(exc)
        raise StorageError(f"cannot write {path}: {reason}") from exc


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
