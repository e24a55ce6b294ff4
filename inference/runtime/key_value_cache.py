"""Keys and values of the tokens so far, as the graph takes and returns them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class KeyValueCache:
    """Keys and values of each layer; never changed, for each run makes new ones.

    Attributes:
        arrays: Keys and values of the first layer, then of the next; each (B, kv heads, length, head_dim), float32.
        mask: False where a position is padding, (B, length), bool; None where none is.
    """

    arrays: tuple[Floats, ...]
    mask: npt.NDArray[np.bool_] | None = None

    @property
    def length(self) -> int:
        """Number of positions held, padding included."""
        return int(self.arrays[0].shape[2])

    @property
    def batch(self) -> int:
        """Number of sequences."""
        return int(self.arrays[0].shape[0])

    def select(self, rows: npt.NDArray[np.int64]) -> KeyValueCache:
        """Return a cache of these sequences: reordered, repeated or dropped.

        Raises:
            InferenceError: There is no such sequence.
        """
        if rows.size and not (rows.min() >= 0 and rows.max() < self.batch):
            raise InferenceError(f"the cache holds {self.batch} sequences, and not all of {rows.tolist()}")
        return KeyValueCache(
            tuple(array[rows] for array in self.arrays), None if self.mask is None else self.mask[rows]
        )

    def truncate(self, length: int) -> KeyValueCache:
        """Return a cache of the first `length` positions; its memory is its own.

        Raises:
            InferenceError: The cache holds fewer.
        """
        if not 0 <= length <= self.length:
            raise InferenceError(f"the cache holds {self.length} positions, not {length}")
        if length == self.length:
            return self
        arrays = tuple(np.ascontiguousarray(array[:, :, :length]) for array in self.arrays)
        return KeyValueCache(arrays, None if self.mask is None else self.mask[:, :length].copy())

    def nbytes(self) -> int:
        """Return the number of bytes of the keys and values."""
        return sum(array.nbytes for array in self.arrays)
