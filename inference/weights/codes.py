"""Entropy code of a matrix of integer digits, 0 to ``levels - 1``.

`columns`: ternary digits are a bit for "not zero" and, for those, a raw bit for the sign. The zeros of quantized weights
are denser in some columns (an input that matters less gets smaller weights), so the probability of a column is that of
its own count, drawn to the whole matrix's.
`tree`: digits are the symbols of one adaptive alphabet.
`previous`: each digit of an earlier release has an alphabet of its own, of what the same code is now.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from fedglm.inference.weights.adaptive_bits import AdaptiveTrees, clip_probability, split_into_steps
from fedglm.inference.weights.fixed_width import Digits
from fedglm.inference.weights.rans import PROBABILITY_BITS, Coder

def walk_columns(coder: Coder, digits: Digits | None, shape: tuple[int, int], prior: int) -> Digits:
    """Code ternary digits; a decoder ignores `digits`.

    Args:
        coder: The coder.
        digits: Digits, (rows, columns), uint8, 0 to 2; 1 is zero.
        shape: Rows and columns.
        prior: Weight of the whole matrix in the probability of a column, in rows.

    Returns:
        The digits.
    """
    filled = np.empty(shape, np.bool_) if digits is None else digits != 1
    hits, seen = np.zeros(shape[1], np.int64), np.zeros(shape[1], np.int64)
    all_hits = all_seen = 0
    for rows, columns in split_matrix(shape, coder.lanes):
        mean = ((2 * all_hits + 1) << PROBABILITY_BITS) // (2 * all_seen + 2)
        estimate = ((hits[columns] << PROBABILITY_BITS) + prior * mean) // (seen[columns] + prior)
        count = rows.stop - rows.start
        given = None if digits is None else filled[rows, columns].reshape(-1)
        bits = coder.code_bits(given, np.tile(clip_probability(estimate), count)).reshape(count, -1)
        filled[rows, columns] = bits
        hits[columns] += bits.sum(axis=0)
        seen[columns] += count
        all_hits += int(bits.sum())
        all_seen += bits.size
    given = None if digits is None else digits[filled] == 2
    signs = coder.code_raw(given, int(np.count_nonzero(filled)))
    coded = np.ones(shape, np.uint8)
    coded[filled] = signs.view(np.uint8) << 1
    return coded


def walk_tree(
    coder: Coder, digits: Digits | None, shape: tuple[int, int], levels: int, previous: Digits | None = None
) -> Digits:
    """Code digits; a decoder ignores `digits`.

    Args:
        coder: The coder.
        digits: Digits, (rows, columns), uint8, below `levels`.
        shape: Rows and columns.
        levels: Number of digits.
        previous: The same matrix's digits in an earlier release, of the same shape, below `levels`; None for one
            alphabet.

    Returns:
        The digits. Those of a damaged stream may be `levels` or more.
    """
    coded = np.empty(shape[0] * shape[1], np.uint8)
    given = None if digits is None else digits.reshape(-1)
    contexts = np.zeros(coded.size, np.uint8) if previous is None else previous.reshape(-1)
    trees = AdaptiveTrees(1 if previous is None else levels, (levels - 1).bit_length())
    for step in split_into_steps(coded.size, coder.lanes):
        symbols = None if given is None else given[step].astype(np.int64)
        coded[step] = trees.code(coder, symbols, contexts[step].astype(np.int64))
    return coded.reshape(shape)


def split_matrix(shape: tuple[int, int], lanes: int) -> Iterator[tuple[slice, slice]]:
    """Yield the parts of a matrix that are coded at once: part of a row, or whole rows if several fit into the lanes."""
    rows, columns = shape
    together = max(1, lanes // columns)
    for row in range(0, rows, together):
        for column in range(0, columns, lanes):
            yield slice(row, min(row + together, rows)), slice(column, min(column + lanes, columns))
