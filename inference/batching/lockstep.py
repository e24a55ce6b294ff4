"""Texts that write together, token by token, in the one cache of their batch, with little done around each run.

To build requests and caches for each text takes a third of a step of a small model. As long as no text ends and nobody
else is to join, neither is needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedglm.inference.batching.requests import Answer, Request, order_by_place
from fedglm.inference.batching.sequence_cache import SequenceCache, gather
from fedglm.inference.runtime.session import Cache, Session


class LockStep:
    """Steps of texts that stay together; `part` gives each its own state again.

    Args:
        session: The model.
        requests: At least one, each of a text that goes on by one token.
    """

    def __init__(self, session: Session, requests: Sequence[Request]) -> None:
        self._session, self._requests = session, order_by_place(requests)
        cache = gather([request.cache for request in self._requests if request.cache is not None])
        if cache is None:
            raise ValueError("a text goes on from a cache")
        self._cache: Cache = cache
        self._padding = [cache.length - one.cache.length for one in self._requests if one.cache is not None]
        self._column = np.array(self._padding)[:, np.newaxis] if any(self._padding) else None
        self._tokens = [int(request.ids[0, 0]) for request in self._requests]

    @property
    def has_room(self) -> bool:
        """Whether no text, padding included, fills the model by another token: that step says so of each by itself."""
        return self._cache.length + 1 < self._session.max_length

    def step(self) -> list[tuple[Request, Answer | Exception]]:
        """Run once; return the texts that ended, with their ends, and nothing where all go on.

        Raises:
            Exception: As the run raises; nothing has happened then.
        """
        ids = np.array(self._tokens, dtype=np.int64)[:, np.newaxis]
        length = self._cache.length + 1
        mask = None if self._column is None else np.arange(length) >= self._column
        logits, self._cache = self._session.run(ids, self._cache, mask=mask)
        ended: list[tuple[Request, Answer | Exception]] = []
        for row, request in enumerate(self._requests):
            try:
                token = request.choose_next(self._session, logits[row, -1])
            except Exception as exc:  # of whatever kind: it is the sender's
                ended.append((request, exc))
                continue
            if token is None:
                ended.append((request, (logits[row : row + 1], self._cache_of(row))))
            else:
                self._tokens[row] = token
        return ended

    def part(self, now: float) -> None:
        """Give each text its next token, its cache and the time of its last step, in seconds, for those that go on."""
        for row, (request, token) in enumerate(zip(self._requests, self._tokens, strict=True)):
            request.go_on(token, self._cache_of(row), now)

    def _cache_of(self, row: int) -> SequenceCache:
        padding = self._padding[row]
        return SequenceCache(self._cache, len(self._padding), row, padding, self._cache.length - padding)
