"""Temporary storage for the accepted updates of a round until it closes: the bounds of each follow from all.

They are stored on disk, coded as they were received; a few numbers of each stay in memory. So memory does not grow with
the size of the updates, and hardly with their number.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from fedglm.compression.codec import Update, decode
from fedglm.core.files import storage_errors


@dataclass(frozen=True)
class KeptUpdate:
    """A stored update.

    Attributes:
        name: Name of the node.
        weight: Public weight of the node.
        norm: Euclidean norm of the update.
        max_abs: Largest magnitude of its values.
        offset: Offset of its bytes in the file.
        length: Number of its bytes.
    """

    name: str
    weight: float
    norm: float
    max_abs: float
    offset: int
    length: int


class KeptUpdates:
    """Coded updates in an unnamed temporary file, which disappears with the process.

    Args:
        folder: Folder of the temporary file.
        size: Number of federated parameters.
        codec: Name of the codec of the updates.
    """

    def __init__(self, folder: Path, size: int, codec: str) -> None:
        self._folder, self._size, self._codec = folder, size, codec
        self._file: IO[bytes] | None = None
        self._kept: dict[str, KeptUpdate] = {}
        self._end = 0

    def keep(self, name: str, weight: float, update: Update, blob: bytes) -> None:
        """Store an update.

        Args:
            name: Name of the node; an earlier update of the same node is replaced.
            weight: Public weight of the node.
            update: Update decoded from `blob`.
            blob: Coded update, as received.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        with storage_errors(self._folder):
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - open until `close`
            self._file.seek(self._end)
            self._file.write(blob)
        self._kept[name] = KeptUpdate(name, weight, update.norm(), update.max_abs(), self._end, len(blob))
        self._end += len(blob)

    @property
    def entries(self) -> list[KeptUpdate]:
        """The stored updates, sorted by name: their order does not depend on the order of arrival."""
        return [self._kept[name] for name in sorted(self._kept)]

    def load_all(self) -> Iterator[tuple[KeptUpdate, Update]]:
        """Yield each entry with its update, decoded again, one at a time, sorted by name.

        Raises:
            StorageError: The disk cannot be read.
        """
        for entry in self.entries:
            yield entry, self.load(entry)

    def load(self, entry: KeptUpdate) -> Update:
        """Read one update from the disk and decode it.

        Raises:
            StorageError: The disk cannot be read.
        """
        if self._file is None:
            raise RuntimeError("nothing was kept")
        with storage_errors(self._folder):
            self._file.seek(entry.offset)
            blob = self._file.read(entry.length)
        return decode(blob, size=self._size, codec=self._codec)

    def close(self) -> None:
        """Close the file and drop all updates."""
        if self._file is not None:
            self._file.close()
        self._file, self._kept = None, {}
