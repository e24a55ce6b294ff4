"""What a tokenizer does for a model in use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int64]


class Encoded(NamedTuple):
    """A row as tokens.

    Attributes:
        ids: Token ids, (T,), int64, T at least 1.
        is_cut: Whether the end of the row's text was left out, because the model was trained on shorter ones.
    """

    ids: Ids
    is_cut: bool


class TextStream(Protocol):
    """Makes text of tokens as they come; no piece of it ends within a character, and bytes that are none are U+FFFD."""

    def feed(self, token: int) -> str:
        """Take a token, and return the text that is complete with it; often empty."""
        ...

    def finish(self) -> str:
        """Return the rest: what was begun and not ended."""
        ...


class Tokenizer(Protocol):
    """Maps texts to token ids, and back."""

    @property
    def vocab_size(self) -> int:
        """Exclusive upper bound of the ids that it can decode."""
        ...

    @property
    def eos_id(self) -> int | None:
        """Token that ends a text; None where there is none."""
        ...

    def encode_prompt(self, text: str) -> Ids:
        """Return the ids of a text that a language model is to continue, (T,), int64: begun and not ended."""
        ...

    def encode_whole(self, text: str, length: int) -> Encoded:
        """Return a text for a classifier, with its special tokens, cut to `length` tokens."""
        ...

    def stream(self) -> TextStream:
        """Start to decode ids one by one; special tokens have no text."""
        ...


def decode_all(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Return the text of some ids: the pieces that they stream as."""
    stream = tokenizer.stream()
    return "".join([*map(stream.feed, ids), stream.finish()])
