"""Keys and values of beginnings that texts share (an instruction, an earlier turn), within a number of bytes."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.session import Cache

Tokens = npt.NDArray[np.int64]


class PrefixCache:
    """Remembers the caches of token sequences and finds the longest beginning of a new one; safe between threads.

    What was used longest ago leaves first. A cache that is larger than the bound is not kept.

    Args:
        max_bytes: Bound on the bytes of keys and values.

    Raises:
        InferenceError: The bound is negative.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise InferenceError(f"a prefix cache cannot have {max_bytes} bytes; 0 turns it off")
        self._max_bytes = max_bytes
        self._entries: OrderedDict[bytes, tuple[Tokens, Cache]] = OrderedDict()
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

        Entries that it begins with are dropped, as it serves what they served.

        Raises:
            InferenceError: The cache is not of these tokens.
        """
        if tokens.ndim != 1 or tokens.dtype != np.int64 or cache.length != len(tokens):
            raise InferenceError(f"a cache of {cache.length} positions is not of tokens of shape {tokens.shape}")
        size = cache.nbytes()
        if size > self._max_bytes or not len(tokens):
            return
        key = tokens.tobytes()
        with self._lock:
            for other in [other for other in self._entries if key.startswith(other)]:
                self._drop(other)
            self._entries[key] = (tokens.copy(), cache)
            self._nbytes += size
            while self._nbytes > self._max_bytes:
                self._drop(next(iter(self._entries)))

    def find(self, tokens: Tokens) -> Cache | None:
        """Return a cache of the longest known beginning of these tokens, (length,), int64, or None.

        At least the last token is left to be read, for its logits are in no cache.
        """
        with self._lock:
            best, length = b"", 0
            for key, (known, _) in self._entries.items():
                shared = _shared_length(known, tokens[:-1])
                if shared > length:
                    best, length = key, shared
            if not length:
                return None
            self._entries.move_to_end(best)
            cache = self._entries[best][1]
        return cache.truncate(length)

    def _drop(self, key: bytes) -> None:
        self._nbytes -= self._entries.pop(key)[1].nbytes()


def _shared_length(one: Tokens, other: Tokens) -> int:
    """Number of tokens with which both begin."""
    count = min(len(one), len(other))
    different = np.flatnonzero(one[:count] != other[:count])
    return int(different[0]) if different.size else count
