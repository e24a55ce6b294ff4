"""What an encoder does at once where a decoder goes step by step: it knows all bits, and so all counts before each.

The bits, their probabilities and their order are those of the steps (`adaptive_bits`, `codes`), whose code is
the same byte for byte; only the calls of numpy are fewer, by as many as there are steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.weights.adaptive_bits import Contexts, estimate, estimate_columns, split_into_steps
from fedglm.inference.weights.rans import Bits, Coder

_AT_ONCE: Final = 1 << 16
"""Bits, or counts, that are held at a time."""

Expand = Callable[[slice], tuple[Bits, Contexts]]


def code_known_symbols(coder: Coder, count: int, expand: Expand, *, bits: int, contexts: int) -> None:
    """Code symbols of adaptive bits, each of which has contexts that no other bit of the symbol has.

    Args:
        coder: An encoder.
        count: Number of symbols.
        expand: Returns the bits of some symbols in the order of coding, and their contexts, both (n, bits).
        bits: Number of bits of a symbol.
        contexts: Number of contexts.
    """
    starts = np.array([step.start for step in split_into_steps(count, coder.lanes)] + [count])
    ones, seen = np.zeros(contexts, np.int64), np.zeros(contexts, np.int64)
    together = max(1, _AT_ONCE // max(contexts, bits * coder.lanes))
    for first in range(0, starts.size - 1, together):
        ends = starts[first : first + together + 1]
        sizes = np.diff(ends)
        step = np.repeat(np.arange(sizes.size), sizes)[:, None]
        given, context = expand(slice(ends[0], ends[-1]))
        key = step * contexts + context
        new_seen = np.bincount(key.reshape(-1), minlength=sizes.size * contexts).reshape(-1, contexts)
        new_ones = np.bincount(key[given], minlength=sizes.size * contexts).reshape(-1, contexts)
        probability = estimate(_before(new_ones, ones), _before(new_seen, seen)).reshape(-1)[key]
        # A step codes the first bit of all its symbols, then the second.
        at = ends[:-1] - ends[0]
        place = (np.arange(len(key)) + at.repeat(sizes) * (bits - 1))[:, None] + sizes[step] * np.arange(bits)
        ordered, those = np.empty(key.size, np.int64), np.empty(key.size, np.bool_)
        ordered[place], those[place] = probability, given
        coder.code_known(those, ordered, sizes.repeat(bits))


def _before(new: Contexts, total: Contexts) -> Contexts:
    """Return the counts before each step, (steps, contexts), and add all to the total."""
    after: Contexts = total + new.cumsum(axis=0)
    total[:] = after[-1]
    return after - new


def expand_tree(symbols: Contexts, contexts: Contexts | int, width: int) -> tuple[Bits, Contexts]:
    """Return the bits of symbols, (n, width), most significant first, and their nodes in `AdaptiveTrees`."""
    depth = np.arange(width)
    nodes = 1 << depth | symbols[:, None] >> (width - depth)
    return (symbols[:, None] >> (width - 1 - depth) & 1).astype(np.bool_), nodes + (
        np.asarray(contexts)[..., None] << width
    )


def code_known_nonzeros(coder: Coder, nonzeros: npt.NDArray[np.bool_]) -> None:
    """Code which digits of a matrix, (rows, columns), are not zero, as `codes.walk_nonzeros` does."""
    rows, columns = nonzeros.shape
    height, starts = max(1, coder.lanes // columns), np.arange(0, columns, coder.lanes)
    widths = np.diff(starts, append=columns)
    hits, all_hits, all_seen = np.zeros(columns, np.int64), 0, 0
    together = height * max(1, _AT_ONCE // (height * columns))
    for first in range(0, rows, together):
        some = nonzeros[first : first + together]
        at = np.arange(0, len(some), height)
        heights = np.diff(at, append=len(some))
        new = np.add.reduceat(some, at, axis=0, dtype=np.int64)  # of rows that are coded at once, (parts, columns)
        new_hits, sizes = np.add.reduceat(new, starts, axis=1), heights[:, None] * widths
        hits_before, seen_before = all_hits + _before_each(new_hits), all_seen + _before_each(sizes)
        probability = estimate_columns(
            _before(new, hits),
            (first + at)[:, None],
            hits_before.repeat(widths, axis=1),
            seen_before.repeat(widths, axis=1),
        )
        all_hits, all_seen = all_hits + int(new.sum()), all_seen + some.size
        coder.code_known(some.reshape(-1), probability.repeat(heights, axis=0).reshape(-1), sizes.reshape(-1))


def _before_each(counts: Contexts) -> Contexts:
    """Return the sum of all counts before each, row by row."""
    return counts.cumsum().reshape(counts.shape) - counts
