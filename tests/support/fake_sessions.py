"""A session whose logits are a function of a sequence's real tokens alone, exact to the bit in any batch."""

import threading
from dataclasses import dataclass

import numpy as np

VOCAB = 97


@dataclass(frozen=True)
class FakeCache:
    tokens: np.ndarray  # (B, P); padding and tokens alike, as the mask alone tells them apart

    @property
    def length(self):
        return self.tokens.shape[1]

    def select(self, rows):
        return FakeCache(self.tokens[rows])

    def truncate(self, length):
        assert length <= self.length
        return FakeCache(self.tokens[:, :length])

    def skip(self, count):
        assert count <= self.length
        return FakeCache(self.tokens[:, count:])

    def join(self, others):
        caches = [self, *others]
        longest = max(cache.length for cache in caches)
        return FakeCache(np.concatenate([np.pad(c.tokens, ((0, 0), (longest - c.length, 0))) for c in caches]))

    def nbytes(self):
        return self.tokens.nbytes


def digest(tokens):
    """A hash of a sequence, as three small whole numbers."""
    state = 1
    for token in tokens:
        state = (state * 31 + int(token) + 7) % 65_521
    return np.array([state, len(tokens), tokens[-1]], dtype=np.float32)


class FakeSession:
    """Fails for a batch that holds `poison`, and waits in each run where a `gate` is given."""

    outputs, max_length, vocab_size = 3, 64, VOCAB

    def __init__(self, poison=None, gate=None, at_once=1):
        self.poison, self.gate, self.batches, self.masked = poison, gate, [], 0
        self.started = threading.Event()
        self.entered = threading.Semaphore(0)
        self.room = threading.Semaphore(at_once)

    def run(self, ids, cache=None, *, logits_at=None, mask=None):
        assert self.room.acquire(blocking=False), "more runs at once than may be"
        try:
            self.started.set()
            self.entered.release()
            if self.gate is not None:
                assert self.gate.wait(20)
            return self.read(ids, cache, logits_at, mask)
        finally:
            self.room.release()

    def read(self, ids, cache, logits_at, mask):
        self.batches.append(len(ids))
        if self.poison is not None and (ids == self.poison).any():
            raise RuntimeError(f"token {self.poison}")
        past = cache.length if cache is not None else 0
        tokens = ids if cache is None else np.concatenate([cache.tokens, ids], axis=1)
        assert tokens.shape[0] == ids.shape[0]
        assert tokens.shape[1] <= self.max_length
        if mask is None:
            mask = np.ones(tokens.shape, dtype=bool)
        else:
            self.masked += 1
            assert mask.shape == tokens.shape
            assert (np.diff(mask.astype(int), axis=1) >= 0).all(), "padding stands on the left"
            assert mask[:, -1].all()
            assert mask[:, 0].any(), "no more padding than the longest needs"
        if logits_at is None:
            logits_at = np.full((len(ids), 1), ids.shape[1] - 1)
        logits = [[digest(row[: past + at + 1][real[: past + at + 1]]) for at in ats]
                  for row, real, ats in zip(tokens, mask, logits_at, strict=True)]  # fmt: skip
        return np.array(logits), FakeCache(tokens)


@dataclass(frozen=True)
class FakeCosts:
    """Fixed milliseconds a run and some for each token of each sequence."""

    fixed: float = 1.0
    each: float = 0.1

    def milliseconds(self, batch, tokens):
        return self.fixed + self.each * batch * tokens
