"""The cache of trials: the user's own unless a folder is named."""

from collections.abc import Callable
from pathlib import Path

from fedglm.autoglm.light.cache.store import Store, default_folder
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.search.trial_cache import TrialCache
from fedglm.core.files import StorageError


def open_cache(folder: Path | None, *, unused: bool, warn: Callable[[str], None]) -> TrialCache | None:
    """Open the cache in a folder; the user's own, where none is named, is done without where it cannot be made.

    Args:
        folder: The folder; None takes the user's own.
        unused: Whether the user wants none.
        warn: Called with a line for the user.

    Raises:
        LightenError: Others may write to the folder, or the user names one and wants none.
        StorageError: The named folder cannot be made.
    """
    if unused and folder is not None:
        raise LightenError("--cache names a folder and --no-cache wants none: leave one out")
    if unused:
        return None
    try:
        return TrialCache(Store(folder or default_folder(), warn=warn))
    except StorageError as exc:
        if folder is not None:
            raise
        warn(f"nothing is kept for later searches: {exc}")
        return None
