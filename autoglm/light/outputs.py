"""Where a light model is written, checked before any work: minutes of training must not end at a folder of another."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.plan.plan_files import check_suffix
from fedglm.core.files import storage_errors
from fedglm.inference.release.folder import check_replaceable
from fedglm.inference.release.manifest import MANIFEST


@dataclass(frozen=True)
class Outputs:
    """Paths of what is written.

    Attributes:
        folder: Folder of the release.
    """

    folder: Path

    @classmethod
    def choose(cls, model: Path, out: Path | None) -> Self:
        """Return the outputs beside a model, or where the user says."""
        whole = model.expanduser().resolve()  # which has a name, where `.` has none
        return cls(whole.with_name(f"{whole.name}-light") if out is None else out.expanduser().absolute())

    @property
    def record(self) -> Path:
        """The record: beside the release, for nothing else may lie in its folder."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def page(self) -> Path:
        """The page for people."""
        return self.folder.with_name(f"{self.folder.name}.html")

    def check(self, read: Iterable[Path]) -> None:
        """Check that all can be written, and that nothing of another's is written over.

        Args:
            read: Files that are read.

        Raises:
            InferenceError: The folder holds something else than a light release.
            LightenError: A file is there that is no earlier release's.
            StorageError: Nothing can be written there.
        """
        if not self.folder.name:
            raise LightenError(f"{self.folder} has no name for a release: name a new folder with --out")
        with storage_errors(self.folder):
            check_replaceable(self.folder)
            earlier = (self.folder / MANIFEST).is_file()
            for path in (self.record, self.page):
                check_not_read(path, read)
                if path.is_dir() or (path.exists() and not earlier):
                    raise LightenError(
                        f"{path} is there already, and of no release: take it away, or name another --out"
                    )
        check_writable(self.folder)


def check_plan_path(path: Path, *, read: Iterable[Path]) -> None:
    """Check that a plan can be written to a file.

    Args:
        path: The file.
        read: Files that are read.

    Raises:
        LightenError: Its name says no format, or it is read.
        StorageError: Nothing can be written there.
    """
    check_suffix(path.suffix)
    check_not_read(path, read)
    if path.is_dir():
        raise LightenError(f"{path} is a folder: name a file for the plan")
    check_writable(path)


def check_not_read(path: Path, read: Iterable[Path]) -> None:
    """Check that a file that is to be written is none of those that are read.

    Raises:
        LightenError: It is.
    """
    if any(path.expanduser().resolve() == other.expanduser().resolve() for other in read):
        raise LightenError(f"{path} is read, and would be written over: name another file to write")


def check_writable(path: Path) -> None:
    """Check that something can be written at a path, whose folders may not be there yet.

    Raises:
        StorageError: It cannot; the message has the system's reason.
    """
    with storage_errors(path):
        parent = next(one for one in path.absolute().parents if one.exists())
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(b"\0")
