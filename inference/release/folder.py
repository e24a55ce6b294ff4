"""Writing a release's folder: it is complete, or not there."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from fedglm.core.files import storage_errors, sync_folder
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.manifest import MANIFEST


def write_folder(folder: str | Path, files: Mapping[str, bytes]) -> None:
    """Write the files into a new folder, which is renamed into place when complete; an earlier release is replaced.

    Raises:
        InferenceError: The folder holds something else than a light release.
        StorageError: It cannot be written; an earlier release is unchanged.
    """
    target = Path(folder).absolute()
    check_replaceable(target)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            new, old = scratch / "new", scratch / "old"
            new.mkdir()
            for name, content in files.items():
                with (new / name).open("xb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            sync_folder(new)
            if target.exists():
                target.rename(old)
            new.rename(target)
            sync_folder(target.parent)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def check_replaceable(target: Path) -> None:
    """Check that a folder is not there, is empty, or holds a light release.

    Raises:
        InferenceError: It holds something else, or is a link.
    """
    if target.is_symlink() or (target.exists() and not _may_replace(target)):
        raise InferenceError(f"{target}: holds something else than a light release; choose a new folder")


def _may_replace(target: Path) -> bool:
    return target.is_dir() and ((target / MANIFEST).is_file() or not any(target.iterdir()))
