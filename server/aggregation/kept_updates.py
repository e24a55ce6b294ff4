"""The good updates of a round until it closes, for what bounds one of them follows from all.

On the disk they are coded, as they came; of each, a few numbers stay in memory. So memory does not grow with the size
of the updates, and hardly with their number.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedglm.compression.codec import Update, decode
from fedglm.core.files import storage_errors


@dataclass(frozen=True)
class Kept:
    """An update that was taken.

    Attributes:
        name: Of the node.
        weight: Public weight of the node.
        norm: Of the update.
        greatest: Magnitude of its greatest value.
        start: Where its bytes lie.
        length: How many they are.
    """

    name: str
    weight: float
    norm: float
    greatest: float
    start: int
    length: int


class KeptUpdates:
    """Coded updates in a file without a name, which is gone with the process.

    Args:
        folder: Where there is room for them.
        size: Number of federated parameters.
        codec: By which they are coded.
    """

    def __init__(self, folder: Path, size: int, codec: str) -> None:
        self._folder, self._size, self._codec = folder, size, codec
        self._file: IO[bytes] | None = None
        self._kept: dict[str, Kept] = {}
        self._end = 0

    def keep(self, name: str, weight: float, update: Update, blob: bytes) -> None:
        """Take an update and its bytes.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        with storage_errors(self._folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - open until `close`
            self._file.seek(self._end)
            self._file.write(blob)
        self._kept[name] = Kept(name, weight, update.norm(), update.max_abs(), self._end, len(blob))
        self._end += len(blob)

    @property
    def by_name(self) -> list[Kept]:
        """What is known of each, in an order that does not depend on who was quick."""
        return [self._kept[name] for name in sorted(self._kept)]

    def updates(self) -> Iterator[tuple[Kept, Update]]:
        """Each, decoded again, one at a time, by name.

        Raises:
            StorageError: The disk cannot be read.
        """
        for kept in self.by_name:
            yield kept, self.update(kept)

    def update(self, kept: Kept) -> Update:
        """One of them.

        Raises:
            StorageError: The disk cannot be read.
        """
        if self._file is None:
            raise RuntimeError("nothing was kept")
        with storage_errors(self._folder):
            self._file.seek(kept.start)
            blob = self._file.read(kept.length)
        return decode(blob, size=self._size, codec=self._codec)

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
        self._file, self._kept = None, {}
