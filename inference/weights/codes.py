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
from fedglm.inference.weights.adaptive_bits import AdaptiveBits, AdaptiveTrees, estimate_columns, split_into_steps
from fedglm.inference.weights.fixed_width import Digits
from fedglm.inference.weights.known_bits import code_known_nonzeros, code_known_symbols, expand_tree
from fedglm.inference.weights.rans import Coder

Nonzeros = npt.NDArray[np.bool_]

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
    if nonzeros is not None:
        code_known_nonzeros(coder, nonzeros)
        return nonzeros
    coded = np.empty(shape, np.bool_)
    hits, all_hits, all_seen = np.zeros(shape[1], np.int64), 0, 0
    for rows, columns in split_matrix(shape, coder.lanes):
        count = rows.stop - rows.start
        probability = estimate_columns(hits[columns], rows.start, all_hits, all_seen)
        bits = coder.code_bits(None, probability if count == 1 else np.tile(probability, count))
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
    width = (levels - 1).bit_length()
    if digits is not None:
        given = digits.reshape(-1)
        code_known_symbols(
            coder,
            given.size,
            lambda some: expand_tree(given[some].astype(np.int64), 0, width),
            bits=width,
            contexts=1 << width,
        )
        return digits
    coded, tree = np.empty(shape[0] * shape[1], np.uint8), AdaptiveTrees(1, width)
    for step in split_into_steps(coded.size, coder.lanes):
        coded[step] = tree.code(coder, None, np.zeros(step.stop - step.start, np.int64))
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
