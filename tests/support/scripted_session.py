"""A session without a model: its logits are a function of the tokens that a sequence really has, whatever is padded."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScriptedCache:
    """The tokens of each sequence, padding as None."""

    rows: tuple
    length: int

    def select(self, rows):
        return ScriptedCache(tuple(self.rows[row] for row in rows), self.length)

    def truncate(self, length):
        return ScriptedCache(tuple(row[:length] for row in self.rows), length)

    def nbytes(self):
        return 8 * len(self.rows) * self.length


class ScriptedSession:
    """Logits by `score(tokens so far) -> (outputs,)`; by default by a hash of them."""

    def __init__(self, *, outputs, vocab_size=None, max_length=64, score=None):
        self.outputs, self.vocab_size, self.max_length = outputs, vocab_size or outputs, max_length
        self.score = score or self.hashed
        self.runs = []

    def hashed(self, tokens):
        digest = hashlib.sha256(bytes(str(tokens), "ascii")).digest()
        return np.random.default_rng(list(digest)).normal(size=self.outputs)

    def run(self, ids, cache=None, *, logits_at=None, mask=None):
        batch, size = ids.shape
        past = cache.length if cache else 0
        assert past + size <= self.max_length
        assert ids.min() >= 0
        assert ids.max() < self.vocab_size
        before = cache.rows if cache else ((),) * batch
        real = np.ones((batch, past + size), dtype=bool) if mask is None else mask
        assert real.shape == (batch, past + size)
        self.runs.append(ids.shape)
        rows = tuple(
            (*old, *(int(token) if real[i, past + j] else None for j, token in enumerate(ids[i])))
            for i, old in enumerate(before)
        )
        at = np.full((batch, 1), size - 1) if logits_at is None else logits_at
        logits = [
            [self.score(tuple(token for token in row[: past + position + 1] if token is not None)) for position in own]
            for row, own in zip(rows, at, strict=True)
        ]
        return np.array(logits, dtype=np.float32), ScriptedCache(rows, past + size)
