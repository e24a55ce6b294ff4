"""One sequence that waits for its run, and several of them in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import pairwise
from operator import itemgetter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.inference.batching.sequence_cache import SequenceCache, gather
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.session import Cache, Session

Answer: TypeAlias = tuple[npt.NDArray[np.float32], SequenceCache]
"""Logits, (1, K, outputs), and the cache with the new tokens."""
Choose: TypeAlias = Callable[[npt.NDArray[np.float32]], int | None]
"""Takes the logits of the last token, (outputs,), and returns the next token, or None at the end of the text."""


class Request:
    """New tokens of one sequence, checked alone so that they cannot spoil the run of others.

    Attributes:
        ids: Tokens, (1, S), int64.
        cache: The sequence so far; None at its start.
        logits_at: Positions within S, (1, K), int64, at which logits are wanted; None: the last.
        arrived: Time of its arrival, or of its last step, in seconds.
        choose: Chooses the next token of a text that goes on; None for a single run.
        future: The answer to come.
        tokens: S.

    Raises:
        InferenceError: It is not one sequence, or a token, a position or the length does not fit the model.
    """

    __slots__ = ("arrived", "cache", "choose", "future", "ids", "logits_at", "tokens")

    def __init__(
        self,
        session: Session,
        ids: npt.NDArray[np.int64],
        cache: Cache | None,
        *,
        logits_at: npt.NDArray[np.int64] | None = None,
        choose: Choose | None = None,
        arrived: float,
    ) -> None:
        if ids.ndim != 2 or ids.shape[0] != 1 or ids.shape[1] == 0 or ids.dtype != np.int64:
            raise InferenceError(f"a request is one sequence, (1, S) int64, not {ids.shape} {ids.dtype}")
        if ids.min() < 0 or ids.max() >= session.vocab_size:
            raise InferenceError(f"tokens are 0 to {session.vocab_size - 1}, not {ids.min()} to {ids.max()}")
        self.tokens = ids.shape[1]
        if logits_at is not None:
            if logits_at.ndim != 2 or logits_at.shape[0] != 1 or logits_at.shape[1] == 0:
                raise InferenceError(f"positions of logits are (1, K), not {logits_at.shape}")
            if logits_at.min() < 0 or logits_at.max() >= self.tokens:
                raise InferenceError(f"logits at {logits_at.min()} to {logits_at.max()} of {self.tokens} new tokens")
        self.ids, self.logits_at, self.choose, self.arrived = ids, logits_at, choose, arrived
        self.cache = SequenceCache(cache) if cache is not None and not isinstance(cache, SequenceCache) else cache
        self.future: Future[Answer] = Future()
        self.check_length(session)

    @property
    def group(self) -> int:
        """Requests that may share a run: beginnings of any lengths (0), and continuations by equally many tokens.

        Padding stands on the left; between a cache and new tokens there is no room for it.
        """
        return 0 if self.cache is None else self.tokens

    def check_length(self, session: Session) -> None:
        """Raise an `InferenceError` where the sequence is longer than the model takes."""
        length = self.tokens + (self.cache.length if self.cache is not None else 0)
        if length > session.max_length:
            raise InferenceError(f"{length} tokens are more than the {session.max_length} that the model takes")

    def choose_next(self, session: Session, logits: npt.NDArray[np.float32]) -> int | None:
        """Return the token by which a text goes on after these logits, (outputs,); None where it ends.

        Raises:
            InferenceError: The chosen token does not fit the model.
            Exception: As `choose` raises.
        """
        token = None if self.choose is None or self.future.cancelled() else self.choose(logits)
        if token is not None and not 0 <= token < session.vocab_size:
            raise InferenceError(f"token {token} was chosen; tokens are 0 to {session.vocab_size - 1}")
        return token

    def go_on(self, token: int, cache: SequenceCache, now: float) -> None:
        """Take the next step of a text: its next token, after what the cache holds."""
        self.ids, self.tokens, self.cache, self.arrived = np.array([[token]], dtype=np.int64), 1, cache, now
        self.logits_at = None

    def proceed(self, session: Session, answer: Answer, now: float) -> bool:
        """Take the next step of a text that goes on; return whether there is one.

        Raises:
            InferenceError: The chosen token does not fit the model, or the text is full.
            Exception: As `choose` raises.
        """
        token = self.choose_next(session, answer[0][0, -1])
        if token is None:
            return False
        self.go_on(token, answer[1], now)
        self.check_length(session)
        return True


def run_together(session: Session, requests: Sequence[Request]) -> list[Answer]:
    """Run requests of one group as one batch; answers in their order."""
    if len(requests) == 1:
        (one,) = requests
        logits, cache = session.run(one.ids, None if one.cache is None else one.cache.alone(), logits_at=one.logits_at)
        return [(logits, SequenceCache(cache))]
    order = _find_order(requests)
    batch = requests if order is None else [requests[index] for index in order]
    past = gather([request.cache for request in batch if request.cache is not None])
    held = 0 if past is None else past.length
    size = max([request.tokens for request in batch])
    padding = [size - request.tokens + (held - request.cache.length if request.cache is not None else 0)
               for request in batch]  # fmt: skip

    mask = np.arange(held + size) >= np.array(padding)[:, np.newaxis] if any(padding) else None
    ids = np.concatenate([request.ids if request.tokens == size else _pad_left(request.ids, size) for request in batch])
    logits, cache = session.run(ids, past, logits_at=_positions(batch, size), mask=mask)

    rows, length = len(batch), held + size
    answers = []
    for row, request in enumerate(batch):
        wanted = 1 if request.logits_at is None else request.logits_at.shape[1]
        held_in = SequenceCache(cache, rows=rows, row=row, padding=padding[row], length=length - padding[row])
        answers.append((logits[row : row + 1, :wanted], held_in))
    if order is None:
        return answers
    return [answer for _, answer in sorted(zip(order, answers, strict=True), key=itemgetter(0))]


def order_by_place(requests: Sequence[Request]) -> list[Request]:
    """Return requests as they stand in their last batch, so that `gather` finds them side by side."""
    order = _find_order(requests)
    return list(requests) if order is None else [requests[index] for index in order]


def _find_order(requests: Sequence[Request]) -> list[int] | None:
    """Order sequences as they stand in their last batch, so that `gather` finds them side by side; None as they are."""
    places = [(0, 0) if one.cache is None else (id(one.cache.batch), one.cache.row) for one in requests]
    if all(place <= following for place, following in pairwise(places)):
        return None
    return sorted(range(len(places)), key=places.__getitem__)


def _pad_left(ids: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    return np.pad(ids, ((0, 0), (size - ids.shape[1], 0)))


def _positions(batch: Sequence[Request], size: int) -> npt.NDArray[np.int64] | None:
    """Return positions of logits within the padded tokens, (B, K); those of fewer repeat their last one."""
    if all([request.logits_at is None for request in batch]):  # noqa: C419 - at each step: a generator takes twice as long
        return None
    wanted = [
        np.array([request.tokens - 1]) if request.logits_at is None else request.logits_at[0] for request in batch
    ]
    most = max(map(len, wanted))
    rows = [np.pad(at, (0, most - len(at)), mode="edge") + size - request.tokens
            for at, request in zip(wanted, batch, strict=True)]  # fmt: skip
    return np.stack(rows)
