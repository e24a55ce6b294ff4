"""Keys and values of the tokens so far, as the graph takes and returns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.padding import cut_mask, join_masks

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
        return KeyValueCache(tuple(array[rows] for array in self.arrays), cut_mask(self.mask, rows))

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
        return KeyValueCache(arrays, cut_mask(self.mask, np.s_[:, :length]))

    def skip(self, count: int) -> KeyValueCache:
        """Return a cache without its first `count` positions, which are padding in every sequence.

        Raises:
            InferenceError: One is not.
        """
        if not 0 <= count <= self.length or (count and (self.mask is None or self.mask[:, :count].any())):
            raise InferenceError(f"the first {count} of {self.length} positions are not all padding")
        arrays = tuple(np.ascontiguousarray(array[:, :, count:]) for array in self.arrays)
        return KeyValueCache(arrays, cut_mask(self.mask, np.s_[:, count:]))

    def join(self, others: Sequence[KeyValueCache]) -> KeyValueCache:
        """Return a cache of the sequences of this and of the others, in order; the shorter are padded on the left."""
        caches = (self, *others)
        length = max(cache.length for cache in caches)
        arrays = tuple(
            np.concatenate([_pad_left(array, length) for array in arrays])
            for arrays in zip(*(cache.arrays for cache in caches), strict=True)
        )
        mask = join_masks([one.mask for one in caches], [(one.batch, one.length) for one in caches])
        return KeyValueCache(arrays, mask)

    def nbytes(self) -> int:
        """Return the number of bytes of the keys and values."""
        return sum(array.nbytes for array in self.arrays)


def _pad_left(array: Floats, length: int) -> Floats:
    """Fill up the positions with zeros at their start."""
    missing = length - array.shape[2]
    return np.pad(array, ((0, 0), (0, 0), (missing, 0), (0, 0))) if missing else array
