"""The cache of one sequence within that of a batch, taken out only when somebody needs it alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.session import Cache


class SequenceCache:
    """One row of a batch's cache; itself the cache of a batch of one.

    Sequences that decode together step after step stay in one cache, and nothing is copied. Each keeps that whole cache
    in memory: whoever stores one for long stores `truncate(length)`, which holds the sequence alone.

    Args:
        batch: The cache of the batch.
        rows: Number of sequences in it.
        row: Row of the sequence.
        padding: Number of positions on the left that are not the sequence's.
        length: Number of positions that are; None counts them.
    """

    __slots__ = ("batch", "length", "padding", "row", "rows")  # one is made for each sequence at each step

    def __init__(self, batch: Cache, rows: int = 1, row: int = 0, padding: int = 0, length: int | None = None) -> None:
        self.batch, self.rows, self.row, self.padding = batch, rows, row, padding
        self.length = batch.length - padding if length is None else length

    def select(self, rows: npt.NDArray[np.int64]) -> SequenceCache:
        """Return this cache, for `rows` = [0].

        Raises:
            InferenceError: Another row, or several: each request of a batcher is one sequence.
        """
        if rows.tolist() != [0]:
            raise InferenceError(f"rows {rows.tolist()} of one sequence's cache: a batcher takes sequences one by one")
        return self

    def truncate(self, length: int) -> SequenceCache:
        """Return a cache of the first `length` positions of the sequence, without the others of the batch."""
        return SequenceCache(self.alone().truncate(length))

    def skip(self, count: int) -> SequenceCache:
        """Return a cache without the first `count` positions of the sequence."""
        return SequenceCache(self.alone().skip(count))

    def join(self, others: Sequence[SequenceCache]) -> SequenceCache:
        """Return this cache, for no others.

        Raises:
            InferenceError: There are others: the batcher joins sequences by itself.
        """
        if others:
            raise InferenceError("joining caches of a batcher: submit each sequence with its own, and it joins them")
        return self

    def nbytes(self) -> int:
        """Return the sequence's share of the batch's keys and values, in bytes."""
        return self.batch.nbytes() // self.rows

    def alone(self) -> Cache:
        """Return the cache of the sequence without the others of the batch and the padding."""
        cache = self.batch if self.rows == 1 else self.batch.select(np.array([self.row]))
        return cache.skip(self.padding) if self.padding else cache


def gather(caches: Sequence[SequenceCache]) -> Cache | None:
    """Return one cache of these sequences, in order, left-padded to the longest of them and no further; None of none.

    Sequences of one batch that stand side by side move together, and a whole batch in its own order is not copied.
    """
    parts: list[Cache] = []
    start = 0
    while start < len(caches):
        batch = caches[start].batch
        end = start
        while end < len(caches) and caches[end].batch is batch:
            end += 1
        run = caches[start:end]
        rows = [cache.row for cache in run]
        part = batch if rows == list(range(run[0].rows)) else batch.select(np.array(rows))
        common = min(cache.padding for cache in run)
        parts.append(part.skip(common) if common else part)
        start = end
    if len(parts) > 1:
        return parts[0].join(parts[1:])
    return parts[0] if parts else None
