"""Lock of the process that serves a run; it is released however the process ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedglm.core.locks import hold_lock
from fedglm.server.errors import ProjectError

_LOCK = "serving.lock"
_PATIENCE_S = 5.0  # maximum wait for the end of the last process, or for `is_served` in another


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Hold the lock of a run while the block runs: no other process writes to its folder.

    Args:
        folder: Folder of the run.

    Raises:
        ProjectError: Another process holds the lock.
    """
    with hold_lock(folder / _LOCK, patience_s=_PATIENCE_S) as is_held:
        if not is_held:
            raise ProjectError(f"another process serves the run in {folder}")
        yield


def is_served(folder: Path) -> bool:
    """Return whether a living process serves the run."""
    with hold_lock(folder / _LOCK) as is_free:
        return not is_free
