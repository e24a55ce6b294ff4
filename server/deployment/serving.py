"""Whether a process serves a run just now: it holds a lock for as long as it lives, however it ends."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedglm.core.locks import hold_lock
from fedglm.server.errors import ProjectError

_LOCK = "serving.lock"
_PATIENCE_S = 5.0  # of a process for its predecessor's last breath, or for somebody who looks


@contextmanager
def serving(folder: Path) -> Iterator[None]:
    """Serve a run: nobody else writes into its folder while the block runs.

    Args:
        folder: The run's.

    Raises:
        ProjectError: Another process does already.
    """
    with hold_lock(folder / _LOCK, patience_s=_PATIENCE_S) as alone:
        if not alone:
            raise ProjectError(f"another process serves the run in {folder}")
        yield


def is_served(folder: Path) -> bool:
    """Whether a living process serves the run."""
    with hold_lock(folder / _LOCK) as free:
        return not free
