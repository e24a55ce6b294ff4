"""Answers that were given already, kept up to a bound in bytes; the least recently used go first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from threading import Lock
from typing import Generic, TypeVar

from fedglm.inference.errors import InferenceError

Value = TypeVar("Value")


class AnswerCache(Generic[Value]):
    """Maps questions to answers, for a model that always answers the same; safe for several threads.

    Args:
        max_bytes: Maximum sum of the sizes that `put` is told; 0 keeps nothing.

    Attributes:
        reused: Number of answers that `get` gave so far.

    Raises:
        InferenceError: The bound is negative.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise InferenceError(f"the bound of an answer cache must not be negative, as {max_bytes} bytes are")
        self._max_bytes, self._bytes, self.reused = max_bytes, 0, 0
        self._kept: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def nbytes(self) -> int:
        """Sum of the sizes of what is kept."""
        return self._bytes

    def get(self, key: Hashable) -> Value | None:
        """Return the answer to a question; None where it is not kept."""
        with self._lock:
            if key not in self._kept:
                return None
            self._kept.move_to_end(key)
            self.reused += 1
            return self._kept[key][0]

    def put(self, key: Hashable, value: Value, nbytes: int) -> None:
        """Keep an answer, and drop others until the bound holds; one that exceeds the bound alone is not kept.

        Args:
            key: The question.
            value: The answer.
            nbytes: Size of both in bytes.
        """
        with self._lock:
            if key in self._kept:
                self._bytes -= self._kept.pop(key)[1]
            if nbytes > self._max_bytes:
                return
            self._kept[key] = (value, nbytes)
            self._bytes += nbytes
            while self._bytes > self._max_bytes:
                self._bytes -= self._kept.popitem(last=False)[1][1]
