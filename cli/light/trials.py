"""The cache of trials of `fedglm lighten`: the user's own unless a folder is named."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from fedglm.autoglm.light.search.trial_cache import TrialCache


def open_cache(folder: Path | None) -> "TrialCache | None":
    """Open the cache in a folder; the user's own, where none is named, is done without where it cannot be made.

    Raises:
        LightenError: Others may write to the folder.
        StorageError: The named folder cannot be made.
    """
    from fedglm.autoglm.light.cache.store import Store, default_folder
    from fedglm.autoglm.light.search.trial_cache import TrialCache
    from fedglm.core.files import StorageError

    try:
        return TrialCache(Store(folder or default_folder(), warn=_warn))
    except StorageError as exc:
        if folder is not None:
            raise
        _warn(f"nothing is kept for later searches: {exc}")
        return None


def _warn(line: str) -> None:
    typer.echo(line, err=True)
