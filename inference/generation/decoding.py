"""The decoding loop: several texts are continued together, token by token, over one cache of keys and values.

Texts of unequal lengths are padded on the left, so that all go on at the same position of the batch. A text that has
ended leaves the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from enum import StrEnum
from typing import NamedTuple

import numpy as np

from fedglm.inference.errors import InferenceError
from fedglm.inference.generation.prompts import read_prompts
from fedglm.inference.generation.sampling import Sampling, choose_token
from fedglm.inference.inputs.tokenizer import Ids
from fedglm.inference.runtime.prefix_cache import PrefixCache
from fedglm.inference.runtime.session import Session


class Stop(StrEnum):
    """Why a text has ended: an end token, as many tokens as were asked for, or no position left in the model."""

    END = "end"
    MAX_TOKENS = "max-tokens"
    MAX_LENGTH = "max-length"


MAX_BATCH = 32
"""Maximum number of texts that are continued together."""


class Event(NamedTuple):
    """A step of one text.

    Attributes:
        row: Number of the text.
        token: The next token; None where the text has ended.
        stop: Why it has ended; None where it goes on.
    """

    row: int
    token: int | None
    stop: Stop | None


def decode(
    session: Session,
    prompts: Sequence[Ids],
    *,
    sampling: Sampling,
    generators: Sequence[np.random.Generator | None],
    max_tokens: int,
    end_ids: AbstractSet[int],
    pad_id: int,
    vocab_size: int,
    prefixes: PrefixCache,
) -> Iterator[Event]:
    """Continue texts, and yield each token as it is known; each text ends with one event that says why.

    Texts are batched, in the order of their lengths, as far as padding takes no position that a text needs.

    Args:
        session: The model.
        prompts: Ids of each text, (T,), int64.
        sampling: How tokens are chosen.
        generators: Source of the draws of each text.
        max_tokens: Maximum number of new tokens of each text.
        end_ids: Tokens that end a text; they are not yielded.
        pad_id: Token that fills the padding.
        vocab_size: Tokens from here on are never chosen: the model has outputs that its tokenizer lacks.
        prefixes: Keys and values of earlier texts, to begin with, and where those of these are kept: of a text that is
            alone in its batch all, of several the beginning that they share.

    Raises:
        InferenceError: A prompt is empty or longer than the model takes, or `max_tokens` is not positive.
    """
    check_prompts(prompts, max_tokens, session.max_length)
    for rows in _make_batches([len(ids) for ids in prompts], max_tokens, session.max_length):
        batch = [prompts[row] for row in rows]
        logits, cache, mask, length = read_prompts(session, batch, pad_id=pad_id, prefixes=prefixes)
        left, limit = count_left(length, max_tokens, session.max_length)
        read: list[int] = []  # tokens of a text that is alone, behind its prompt
        while rows:
            chosen = [choose_token(logits[i, -1, :vocab_size], sampling, generators[row]) for i, row in enumerate(rows)]
            left -= 1
            for row, token in zip(rows, chosen, strict=True):
                if token in end_ids:
                    yield Event(row, None, Stop.END)
                    continue
                yield Event(row, token, None)
                if not left:
                    yield Event(row, None, limit)
            kept = [i for i, token in enumerate(chosen) if left and token not in end_ids]
            if not kept:
                break
            if len(kept) < len(rows):
                index = np.array(kept, dtype=np.int64)
                rows, cache, mask = [rows[i] for i in kept], cache.select(index), None if mask is None else mask[index]
            if mask is not None:
                mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=True)
            logits, cache = session.run(np.array([[chosen[i]] for i in kept], dtype=np.int64), cache, mask=mask)
            read.append(chosen[kept[0]])
        if len(batch) == 1:
            prefixes.add(np.array([*batch[0].tolist(), *read], dtype=np.int64), cache)


def check_prompts(prompts: Sequence[Ids], max_tokens: int, max_length: int) -> None:
    """Check what is asked for before anything runs.

    Raises:
        InferenceError: A prompt is empty or longer than the model takes, or `max_tokens` is not positive.
    """
    if max_tokens < 1:
        raise InferenceError(f"the number of tokens to generate must be at least 1, not {max_tokens}")
    for ids in prompts:
        if not 0 < len(ids) < max_length:
            raise InferenceError(f"the text has {len(ids)} tokens, and the model takes {max_length - 1} at most")


def count_left(length: int, max_tokens: int, max_length: int) -> tuple[int, Stop]:
    """Return how many tokens may follow so many positions, and why no more."""
    left = min(max_tokens, max_length - length)
    return left, Stop.MAX_TOKENS if left == max_tokens else Stop.MAX_LENGTH


def _make_batches(lengths: Sequence[int], max_tokens: int, max_length: int) -> Iterator[list[int]]:
    """Yield the numbers of the texts of each batch."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    free = [row for row in order if lengths[row] + max_tokens <= max_length]
    for first in range(0, len(free), MAX_BATCH):
        yield free[first : first + MAX_BATCH]
    yield from ([row] for row in order[len(free) :])  # padding would take positions from the shorter of them
