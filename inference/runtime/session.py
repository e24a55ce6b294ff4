"""A model in use, whatever runs it: the ONNX graph of a light release, or torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt


class Cache(Protocol):
    """Keys and values of the tokens so far; opaque to its users.

    A cache never changes: `Session.run` and the methods here return new ones, so that one cache may begin many texts.

    """

    @property
    def length(self) -> int:
        """Number of positions held, the same for every sequence of the batch, padding included."""
        ...

    def select(self, rows: npt.NDArray[np.int64]) -> Self:
        """Return a cache of these sequences of the batch, (new B,): reordered, repeated or dropped."""
        ...

    def truncate(self, length: int) -> Self:
        """Return a cache of the first `length` positions.

        Raises:
            InferenceError: The cache holds fewer.
        """
        ...

    def skip(self, count: int) -> Self:
        """Return a cache without its first `count` positions, which are padding in every sequence.

        Raises:
            InferenceError: One is not.
        """
        ...

    def join(self, others: Sequence[Self]) -> Self:
        """Return a cache of the sequences of this and of the others, in order; the shorter are padded on the left."""
        ...

    def nbytes(self) -> int:
        """Return the number of bytes of its keys and values."""
        ...


class Session(Protocol):
    """A causal model that reads tokens and keeps their keys and values."""

    @property
    def outputs(self) -> int:
        """Width of the output layer: the vocabulary's size, or the number of classes."""
        ...

    @property
    def max_length(self) -> int:
        """Maximum number of positions of a sequence, padding included."""
        ...

    @property
    def vocab_size(self) -> int:
        """Exclusive upper bound of token ids."""
        ...

    def run(
        self,
        ids: npt.NDArray[np.int64],
        cache: Cache | None = None,
        *,
        logits_at: npt.NDArray[np.int64] | None = None,
        mask: npt.NDArray[np.bool_] | None = None,
    ) -> tuple[npt.NDArray[np.float32], Cache]:
        """Read S more tokens of each of B sequences.

        Args:
            ids: Tokens, (B, S), int64.
            cache: What an earlier run of this session returned for the same B sequences; None at their start.
            logits_at: Positions within S, (B, K), int64, at which the output layer is computed; None: the last, K = 1.
                A classifier is read at the last real token, so that padding on the right needs no mask.
            mask: False where a position is padding, (B, past + S), bool. Positions are counted over the True ones.
                Without a mask every token counts.

        Returns:
            Logits, (B, K, outputs), float32, and a cache of past + S positions.

        Raises:
            InferenceError: A shape, a token or a length does not fit the model; or the cache holds padding and there is
                no mask that says so.
        """
        ...
