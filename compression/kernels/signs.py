"""The model of signs by rows and columns, in integers, over the range coder.

The gradient of a matrix is a sum of outer products, so a sign tends to agree with its column's earlier ones, or, in a
row of the opposite orientation, to disagree with all of them. Two scores predict a sign: the column's earlier signs,
and the column's signs relative to the orientations of their rows, times this row's orientation so far. Each has a
weight that adapts to how well it predicted: logistic mixing, as in Mahoney's paq.
"""

from math import isqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.compression.kernels import range_coder as rc
from fedglm.compression.kernels.compiled import kernel
from fedglm.compression.vectors import Flags, Positions

_BITS: Final = 16
_ALL: Final = 1 << _BITS
_UNIT: Final = 1 << 8  # increment of a score by a sign
_FORGET: Final = 4  # a score decays by a sixteenth with each sign
_BOUND: Final = 1 << 11  # bound of the second score
_WEIGHT: Final = 3 << 13  # initial weight; a weight of 2**20 makes a sixteenth of a bit of each unit
_RATE: Final = 14  # weights move by error * score / 2**14
_SURE: Final = 192  # sixteenths of a bit: the odds are 2**12 at most


def _compute_probabilities() -> npt.NDArray[np.int64]:
    """Compute 2**16 / (1 + 2**(-i / 16)) for i from -192 to 192, by integer roots; the same on every machine."""
    scale = 64
    one = 1 << scale
    root = 2 * one
    for _ in range(4):
        root = isqrt(root << scale)
    odds = [one]
    for _ in range(_SURE):
        odds.append(odds[-1] * root >> scale)
    upper = [(each << _BITS) // (each + one) for each in odds]
    return np.array([_ALL - chance for chance in upper[:0:-1]] + upper, np.int64)


_PROBABILITIES = _compute_probabilities()


@kernel
def code_signs(
    encoding: bool, code: rc.Code, rows: Positions, columns: Positions, positions: Positions, negative: Flags
) -> int:
    """Encode the signs of ascending `positions` (k,) into `code`, or fill `negative` (k,) from it.

    Args:
        encoding: Whether to encode; else decode.
        code: Bytes to write, or to read.
        rows: Rows of each tensor, (tensors,), laid end to end. A tensor of one row has no columns.
        columns: Columns of each tensor, (tensors,).
        positions: Ascending, each within the tensors.
        negative: Whether each value is negative, (k,).

    Returns:
        When encoding, the code's length, above `code.size` where it did not fit. When decoding, 1, or 0 if `code` is
        not the one code of any signs.
    """
    state = rc.start_encoding() if encoding else rc.start_decoding(code)
    widest = 1
    for tensor in range(rows.size):
        if rows[tensor] > 1:
            widest = max(widest, columns[tensor])
    plain = np.zeros(widest, np.int64)  # score of each column by its signs
    relative = np.zeros(widest, np.int64)  # score of each column by its signs relative to their rows' orientations
    plain_weight = np.int64(_WEIGHT)
    relative_weight = np.int64(_WEIGHT)
    tensor = -1
    start = np.int64(0)  # first position of the tensor
    end = np.int64(0)
    row = np.int64(0)
    row_end = np.int64(0)
    first = 0  # index of the row's first position
    orientation = np.int64(0)
    for at in range(positions.size):
        position = positions[at]
        if position >= row_end:
            if position < end:
                for earlier in range(first, at):
                    here = positions[earlier] - row
                    sign = _UNIT if negative[earlier] == (orientation >= 0) else -_UNIT
                    relative[here] += sign - (relative[here] >> _FORGET)
            else:
                while position >= end:
                    tensor += 1
                    start = end
                    end += rows[tensor] * columns[tensor]
                for here in range(columns[tensor] if rows[tensor] > 1 else 1):
                    plain[here] = 0
                    relative[here] = 0
            row = start + (position - start) // columns[tensor] * columns[tensor]
            row_end = row + columns[tensor]
            first = at
            orientation = np.int64(0)
        here = position - row if rows[tensor] > 1 else np.int64(0)
        score = max(-_BOUND, min(_BOUND, (orientation * relative[here]) >> 9))
        mixed = (plain_weight * plain[here] + relative_weight * score) >> 20
        chance: int = _PROBABILITIES[max(-_SURE, min(_SURE, mixed)) + _SURE]
        bit = negative[at] if encoding else rc.decode_value(state, _BITS) < chance
        lower: int = 0 if bit else chance
        width: int = chance if bit else _ALL - chance
        if encoding:
            rc.encode(state, code, lower, width, _BITS)
        else:
            rc.decode_step(state, code, lower, width, _BITS)
            negative[at] = bit
        error = _ALL - chance if bit else -chance
        plain_weight += (error * plain[here]) >> _RATE
        relative_weight += (error * score) >> _RATE
        plain[here] += (_UNIT if bit else -_UNIT) - (plain[here] >> _FORGET)
        orientation += relative[here] if bit else -relative[here]
    if encoding:
        return rc.end_encoding(state, code)
    return 1 if rc.is_finished(state, code) else 0
