"""Entropy code of a matrix of integer digits, 0 to ``levels - 1``.

`columns`: of a ternary digit only whether it is zero is coded; signs are raw bits, of all matrices together at the end
of the code. The zeros of quantized weights are denser in some columns (an input that matters less has smaller weights),
so the probability of a column is that of its own count, drawn to the whole matrix's.
`tree`: digits are the symbols of one adaptive alphabet.
`previous`: each digit of an earlier release has an alphabet of its own, of what the same code is now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.weights.adaptive_bits import LEAST, RANGE, AdaptiveTrees, split_into_steps
from fedglm.inference.weights.fixed_width import Digits
from fedglm.inference.weights.rans import Coder

Nonzeros = npt.NDArray[np.bool_]

_PRIOR: Final = 128
"""Rows by which a column's count is drawn to the matrix's (docs/light_format.md has what others gave)."""


def walk_nonzeros(coder: Coder, nonzeros: Nonzeros | None, shape: tuple[int, int]) -> Nonzeros:
    """Code which digits of a ternary matrix are not zero; a decoder ignores `nonzeros`.

    Args:
        coder: The coder.
        nonzeros: Whether each is, (rows, columns).
        shape: Rows and columns.

    Returns:
        Whether each is.
    """
    coded = np.empty(shape, np.bool_)
    hits, all_hits, all_seen = np.zeros(shape[1], np.int64), 0, 0
    for rows, columns in split_matrix(shape, coder.lanes):
        mean, count = (2 * all_hits + 1) * RANGE // (2 * all_seen + 2), rows.stop - rows.start
        estimate = (hits[columns] * RANGE + _PRIOR * mean) // (rows.start + _PRIOR) + LEAST
        given = None if nonzeros is None else nonzeros[rows, columns].reshape(-1)
        bits = coder.code_bits(given, estimate if count == 1 else np.tile(estimate, count))
        coded[rows, columns] = bits if count == 1 else bits.reshape(count, -1)
        hits[columns] += bits if count == 1 else bits.reshape(count, -1).sum(axis=0)
        all_hits += int(np.count_nonzero(bits))
        all_seen += bits.size
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
