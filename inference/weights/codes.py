"""Entropy code of a matrix of integer digits, 0 to ``levels - 1``.

`columns`: of a ternary digit only whether it is zero is coded; signs are raw bits, of all matrices together at the end
of the code. The zeros of quantized weights are denser in some columns (an input that matters less has smaller weights),
so the probability of a column is that of its own count, drawn to the whole matrix's.
`tree`: digits are the symbols of one adaptive alphabet.
`changes`: each digit of an earlier release has a probability of its own to change, and an alphabet of what it becomes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.adaptive_bits import LEAST, RANGE, AdaptiveBits, AdaptiveTrees, split_into_steps
from fedglm.inference.weights.fixed_width import Digits
from fedglm.inference.weights.rans import Coder

Nonzeros = npt.NDArray[np.bool_]

_PRIOR: Final = 128
"""Rows by which a column's count is drawn to the matrix's (docs/light_format.md has what others gave)."""
_MAX_KINDS: Final = 16  # of digits that have a probability of change of their own; of more, few are seen often


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


def walk_tree(coder: Coder, digits: Digits | None, shape: tuple[int, int], levels: int) -> Digits:
    """Code digits; a decoder ignores `digits`.

    Args:
        coder: The coder.
        digits: Digits, (rows, columns), uint8, below `levels`.
        shape: Rows and columns.
        levels: Number of digits.

    Returns:
        The digits. Those of a damaged stream may be `levels` or more.
    """
    coded, given = np.empty(shape[0] * shape[1], np.uint8), None if digits is None else digits.reshape(-1)
    tree = AdaptiveTrees(1, (levels - 1).bit_length())
    for step in split_into_steps(coded.size, coder.lanes):
        symbols = None if given is None else given[step].astype(np.int64)
        coded[step] = tree.code(coder, symbols, np.zeros(step.stop - step.start, np.int64))
    return coded.reshape(shape)


def walk_changes(
    coder: Coder, digits: Digits | None, shape: tuple[int, int], levels: int, previous: Digits | None
) -> Digits:
    """Code digits given those of an earlier release; arguments and result as of `walk_tree`.

    Raises:
        InferenceError: The earlier digits are not there.
    """
    if previous is None:
        raise InferenceError("the weights are coded from an earlier release, which has no matrix like one of theirs")
    coded, given = previous.reshape(-1).copy(), None if digits is None else digits.reshape(-1)
    changed, trees = AdaptiveBits(levels), AdaptiveTrees(levels, (levels - 1).bit_length())
    for step in split_into_steps(coded.size, coder.lanes):
        old = coded[step].astype(np.int64)
        kinds = old if levels <= _MAX_KINDS else np.zeros(old.size, np.int64)
        differs = changed.code(coder, None if given is None else given[step] != old, kinds)
        if differs.any():
            symbols = None if given is None else given[step][differs].astype(np.int64)
            coded[step][differs] = trees.code(coder, symbols, old[differs])
    return coded.reshape(shape)


def split_matrix(shape: tuple[int, int], lanes: int) -> Iterator[tuple[slice, slice]]:
    """Yield the parts of a matrix that are coded at once: part of a row, or all rows that fit into the lanes."""
    rows, columns = shape
    together = max(1, lanes // columns)
    for row in range(0, rows, together):
        for column in range(0, columns, lanes):
            yield slice(row, min(row + together, rows)), slice(column, min(column + lanes, columns))
