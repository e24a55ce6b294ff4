"""Adaptive probabilities of bits: counts by context, in integers, so that every machine computes the same ones.

The estimate after `ones` of `seen` is (ones + 1/2) / (seen + 1) (Krichevsky and Trofimov, 1981): to learn a probability
costs half a logarithm of the number of bits. All bits that are coded at once see the counts of those before them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from fedglm.inference.weights.rans import PROBABILITY_BITS, Bits, Coder

Contexts = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]
Count = TypeVar("Count", int, Counts)

LEAST: Final = 32
"""No bit is surer than 1 - 2**-11, so none costs more than 11 bits or less than 0.0007."""
RANGE: Final = (1 << PROBABILITY_BITS) - 2 * LEAST
"""A share of bits is scaled to this, and then raised by `LEAST`."""
_PRIOR: Final = 128
"""Rows by which a column's count is drawn to the matrix's (docs/light_format.md has what others gave)."""


class AdaptiveBits:
    """Adaptive bits, one for each context.

    Args:
        contexts: Number of contexts.
    """

    def __init__(self, contexts: int) -> None:
        self._ones = np.zeros(contexts, np.int64)
        self._seen = np.zeros(contexts, np.int64)

    def code(self, coder: Coder, bits: Bits | None, contexts: Contexts) -> Bits:
        """Code one bit in each of the first lanes, (n,); see `Coder`."""
        if self._seen.size < contexts.size:  # the fewer divisions
            probability = estimate(self._ones, self._seen)[contexts]
        else:
            probability = estimate(self._ones[contexts], self._seen[contexts])
        coded = coder.code_bits(bits, probability)
        seen, ones = np.bincount(contexts), np.bincount(contexts[coded])
        self._seen[: seen.size] += seen
        self._ones[: ones.size] += ones
        return coded


def estimate(ones: Counts, seen: Counts) -> Counts:
    """Return the probability of a one after so many ones of so many bits."""
    return (2 * ones + 1) * RANGE // (2 * seen + 2) + LEAST


def estimate_columns(hits: Counts, rows: Count, all_hits: Count, all_seen: Count) -> Counts:
    """Return the probability of a hit in columns that had so many in so many rows, drawn to that of all before."""
    mean = (2 * all_hits + 1) * RANGE // (2 * all_seen + 2)
    found: Counts = (hits * RANGE + _PRIOR * mean) // (rows + _PRIOR)
    return found + LEAST


class AdaptiveTrees:
    """Adaptive symbols of `width` bits, one alphabet for each context: a binary tree of adaptive bits.

    Args:
        contexts: Number of contexts.
        width: Number of bits of a symbol.
    """

    def __init__(self, contexts: int, width: int) -> None:
        self._bits = AdaptiveBits(contexts << width)
        self._width = width

    def code(self, coder: Coder, symbols: Contexts | None, contexts: Contexts) -> Contexts:
        """Code one symbol in each of the first lanes, (n,), most significant bit first; a decoder ignores `symbols`."""
        node = np.ones(contexts.size, np.int64)
        for place in reversed(range(self._width)):
            bits = None if symbols is None else (symbols >> place & 1).astype(np.bool_)
            node = node << 1 | self._bits.code(coder, bits, (contexts << self._width) + node)
        return node - (1 << self._width)


def split_into_steps(count: int, lanes: int) -> Iterator[slice]:
    """Yield slices of a vector, to be coded one after the other: one element, one, two, four, and so on to `lanes`.

    The first of them cost the most, as nothing is learnt yet.
    """
    at, size = 0, 1
    while at < count:
        yield slice(at, min(at + size, count))
        at += size
        size = min(at, lanes)
