"""Keys and values of beginnings that texts share (an instruction, an earlier turn), within a number of bytes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from threading import Lock

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.session import Cache

Tokens = npt.NDArray[np.int64]
_TOKEN_BYTES = 8


class PrefixCache:
    """Remembers the caches of token sequences and finds the longest beginning of a new one; safe between threads.

    What was used longest ago leaves first. A cache that is larger than the bound is not kept.

    Args:
        max_bytes: Bound on the bytes of keys and values.

    Attributes:
        reused: Number of tokens that were found so far, and need not be read again.

    Raises:
        InferenceError: The bound is negative.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise InferenceError(f"a prefix cache cannot have {max_bytes} bytes; 0 turns it off")
        self.reused = 0
        self._max_bytes = max_bytes
        # By the bytes of the tokens; none begins another, so that of all that begin a text one at most is here.
        self._entries: OrderedDict[bytes, Cache] = OrderedDict()
        self._sorted: list[bytes] = []
        self._nbytes = 0
        self._lock = Lock()

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values held."""
        return self._nbytes

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, tokens: Tokens, cache: Cache) -> None:
        """Remember the cache of these tokens, (length,), int64: of one sequence without padding.

        An entry that they begin with is dropped, as this one serves what it served; where they begin an entry
        themselves, that one is kept instead.

        Raises:
            InferenceError: The cache is not of these tokens.
        """
        if tokens.ndim != 1 or tokens.dtype != np.int64 or cache.length != len(tokens):
            raise InferenceError(f"a cache of {cache.length} positions is not of tokens of shape {tokens.shape}")
        cache = cache.truncate(cache.length)  # alone: others of its batch must not stay with it
        size = cache.nbytes()
        if size > self._max_bytes or not len(tokens):
            return
        key = tokens.tobytes()
        with self._lock:
            at = bisect_left(self._sorted, key)
            if at < len(self._sorted) and self._sorted[at].startswith(key):
                self._entries.move_to_end(self._sorted[at])
                return
            if at and key.startswith(self._sorted[at - 1]):
                self._drop(self._sorted[at - 1])
            insort(self._sorted, key)
            self._entries[key] = cache
            self._nbytes += size
            while self._nbytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def find(self, tokens: Tokens, *, at_least: int = 1) -> Cache | None:
        """Return a cache of the longest known beginning of these tokens, (length,), int64, or None.

        At least the last token is left to be read, for its logits are in no cache.

        Args:
            tokens: Tokens of one sequence, (length,), int64.
            at_least: Number of tokens below which a beginning is not worth its copy.
        """
        key = tokens[:-1].tobytes()
        with self._lock:
            # The two between which it would stand share the longest beginnings with it.
            at = bisect_left(self._sorted, key)
            near = self._sorted[max(at - 1, 0) : at + 1]
            length, best = max(((_shared_length(other, key), other) for other in near), default=(0, b""))
            if length < max(at_least, 1):
                return None
            self._entries.move_to_end(best)
            self.reused += length
            cache = self._entries[best]
        return cache.truncate(length)

    def _drop(self, key: bytes) -> None:
        del self._sorted[bisect_left(self._sorted, key)]
        self._nbytes -= self._entries.pop(key).nbytes()


def _shared_length(one: bytes, other: bytes) -> int:
    """Return the number of tokens with which both begin."""
    count = min(len(one), len(other))
    different = np.flatnonzero(np.frombuffer(one, np.uint8, count) != np.frombuffer(other, np.uint8, count))
    return (int(different[0]) if different.size else count) // _TOKEN_BYTES
