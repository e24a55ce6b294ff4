"""Ascending positions by an adaptive model of rows and columns, and a range coder.

    bytes  what
    1      0x80 (a Rice parameter ends at 40)
    ...    the tensors' rows and columns (`geometry`), those with fewer than 4 rows, or rows of other than 32 to 2**18
           columns, as one row
    ...    the code: one symbol of the range coder (`kernels.range_coder`) for each position, to the end

The model is a Poisson process in the order of the vector: element c of row r is hit with hazard a_r w_c, that is with
probability 1 - 2**-(a_r w_c). The next position is coded by the hazard that lies before it: 2**-H is the probability of
no hit in elements of total hazard H. So a symbol can skip any number of elements and rows, and each position is coded
as one interval, however long the vector is.

w_c: the weights of a tensor's columns are Gamma distributed; w_c is the posterior mean after the hits so far, and the
distribution's shape follows from the second factorial moment of the columns' hits. It is recomputed after an eighth
more hits.

a_r: the row's rate is Gamma distributed too, around a mean estimated from the last rows and all rows of the tensor,
with a shape that follows from the rows' hits. Its posterior mean is updated within the row, at each hit and at each
quarter of the row. Columns of more than twice the average weight come first in a row and have a rate of their own: the
rows of a token embedding that were not used differ from the others in exactly those.

Each tensor starts from the density of the remaining positions, whose number is known. A tensor of one row has equal
weights and a rate that is the average of its last few thousand positions.

All of this is in integers, so that two machines agree on every bit: rates and weights are fixed-point, and 2**-H and
its inverse are linearly interpolated tables, computed from integer roots, not floats.
"""

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.kernels.context import (
    FEWEST_ROWS,
    LONGEST_ROW,
    MAX_POSITIONS,
    SHORTEST_ROW,
    SPARSEST,
    walk,
)
from fedglm.compression.layout import Layout
from fedglm.compression.positions import geometry
from fedglm.compression.positions.geometry import Shapes
from fedglm.compression.vectors import Positions
from fedglm.compression.wire.envelope import Reader

MARK = 0x80
_MAX_PER_BYTE = 64
"""Maximum positions per byte of the code plus `_SPARE_BYTES`: bounds the memory that a reader allocates."""
_SPARE_BYTES = 16


def to_learnable_shapes(layout: Layout | None, size: int) -> Shapes:
    """Return the rows and columns as the code takes them: a tensor with too few, short or long rows is one row.

    Raises:
        ValueError: The layout is of a vector of another size.
    """
    return _flatten_unlearnable(geometry.to_shapes(layout, size))


def check_positions(positions: Positions, size: int) -> None:
    """Check positions, which the kernels use as indices without a bounds check.

    Raises:
        ValueError: The positions do not strictly ascend from 0 to below `size`.
    """
    if positions.size and (positions[0] < 0 or positions[-1] >= size or not (positions[1:] > positions[:-1]).all()):
        raise ValueError(f"positions must ascend from 0 to below {size}")


def pack(positions: Positions, size: int, layout: Layout | None, below: int) -> bytes | None:
    """Code strictly ascending `positions` of shape (k,), each from 0 to below `size`.

    Returns the code if it has fewer than `below` bytes; None for a longer one, and for a support that this code does
    not take: fewer than one position in 2**17 elements, 2**30 positions or more, or nearly all elements.

    Raises:
        ValueError: The positions do not ascend within the vector, or the layout is of another vector.
    """
    shapes = to_learnable_shapes(layout, size)
    count = positions.size
    if not _is_codable(count, size):
        return None
    check_positions(positions, size)
    head = bytes([MARK]) + geometry.pack(shapes)
    room = max(0, below - 1 - len(head))
    code = np.empty(room + _SPARE_BYTES, np.uint8)  # some more, because trailing zeros are dropped
    length = walk(True, code, *geometry.to_arrays(shapes), size, positions)
    if length > room or count > _MAX_PER_BYTE * (length + _SPARE_BYTES):
        return None
    return head + code[:length].tobytes()


def unpack(reader: Reader, count: int, size: int) -> tuple[Positions, Shapes]:
    """Decode `count` positions below `size`, and the tensors, from the rest of `reader` after the mark.

    Raises:
        CodecError: The bytes are not the one code of a support of this size.
    """
    if not _is_codable(count, size):
        raise CodecError(f"{count} positions in a vector of {size} cannot have this code")
    shapes = geometry.unpack(reader, size)
    if shapes != _flatten_unlearnable(shapes):
        raise CodecError("the geometry has rows that are too few, too short or too long to learn from")
    if count > _MAX_PER_BYTE * (reader.remaining + _SPARE_BYTES):
        raise CodecError(f"{count} positions do not fit in {reader.remaining} bytes")
    positions = np.empty(count, np.int64)
    code = reader.array("<u1", reader.remaining).copy()  # the kernel is compiled for writable bytes
    if not walk(False, code, *geometry.to_arrays(shapes), size, positions):
        raise CodecError("the position code leads outside the vector, ends early or has bytes after its end")
    return positions, shapes


def _is_codable(count: int, size: int) -> bool:
    return 0 < count <= size <= count * SPARSEST and count < MAX_POSITIONS


def _flatten_unlearnable(shapes: Shapes) -> Shapes:
    return [
        shape if shape[0] >= FEWEST_ROWS and SHORTEST_ROW <= shape[1] <= LONGEST_ROW else (1, shape[0] * shape[1])
        for shape in shapes
    ]
