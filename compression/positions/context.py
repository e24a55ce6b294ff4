"""Ascending positions by a model of rows and columns that learns as it goes, and a range coder.

    bytes  what
    1      0x80 (a Rice parameter ends at 40)
    ...    the tensors' rows and columns (`geometry`), those with fewer than 4 rows, or rows of other than 32 to 2**18
           columns, as one row
    ...    the code: one symbol of the range coder (`range_kernels`) for each position, to the end

The model is a Poisson process in the order of the vector: element c of row r is hit with hazard a_r w_c, that is with
probability 1 - 2**-(a_r w_c). The next position is coded by how much hazard lies before it: 2**-H is the probability
that none comes in elements of hazard H in all. So a symbol jumps over any number of elements and rows, and what is
coded is one interval a position, however long the vector is.

w_c: columns of a tensor are Gamma distributed; w_c is the posterior mean after the hits so far, and the distribution's
shape follows from the second factorial moment of the columns' hits. It is taken anew after an eighth more hits.

a_r: the row's rate is Gamma distributed too, around a mean that the last rows and all rows of the tensor give, with a
shape that follows from the rows' hits. Its posterior mean follows the hits within the row, at each of them and at each
quarter of the row. Columns of more than twice the average weight come first in a row and have a rate of their own:
rows of a token embedding that nobody used differ from the others in just those.

Each tensor starts from the density of what is left: the number of positions is known. A tensor of one row has even
weights and a rate that is the average of its last few thousand positions.

All of this is in whole numbers, so that two machines agree on every bit: rates and weights have fixed points, and
2**-H and its inverse are tables with lines between. The tables hold integer roots, not floats.
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
_DENSEST = 64
"""Positions a byte, at most (and as many bytes on top as a short code may lack): bounds what a reader allocates."""
_SHORT = 16


def shapes_of(layout: Layout | None, size: int) -> Shapes:
    """The tensors as the code takes them: what has too few rows, or too short or too long ones, is one row.

    Raises:
        ValueError: the layout of a vector of another size.
    """
    return _learnable(geometry.shapes_of(layout, size))


def check(positions: Positions, size: int) -> None:
    """Refuse what the kernels would follow out of their memory.

    Raises:
        ValueError: positions that do not strictly ascend from 0 to below `size`.
    """
    if positions.size and (positions[0] < 0 or positions[-1] >= size or not (positions[1:] > positions[:-1]).all()):
        raise ValueError(f"positions must ascend from 0 to below {size}")


def pack(positions: Positions, size: int, layout: Layout | None, below: int) -> bytes | None:
    """Code strictly ascending `positions` of shape (k,), each from 0 to below `size`.

    Returns the code if it has fewer than `below` bytes; None for a longer one, and for a support that this code is not
    for: fewer than one position in 2**17 elements, 2**30 or more, or next to all elements.

    Raises:
        ValueError: positions that do not ascend within the vector, or the layout of another vector.
    """
    shapes = shapes_of(layout, size)
    count = positions.size
    if not _codable(count, size):
        return None
    check(positions, size)
    head = bytes([MARK]) + geometry.pack(shapes)
    room = max(0, below - 1 - len(head))
    code = np.empty(room + _SHORT, np.uint8)  # some more, because zeros at the end do not count
    length = walk(True, code, *geometry.arrays(shapes), size, positions)
    if length > room or count > _DENSEST * (length + _SHORT):
        return None
    return head + code[:length].tobytes()


def unpack(reader: Reader, count: int, size: int) -> tuple[Positions, Shapes]:
    """Decode `count` positions below `size`, and the tensors, from all that is left of `reader` after the mark.

    Raises:
        CodecError: anything but the one code of a support of this size.
    """
    if not _codable(count, size):
        raise CodecError(f"{count} positions in a vector of {size} cannot have this code")
    shapes = geometry.unpack(reader, size)
    if shapes != _learnable(shapes):
        raise CodecError("the geometry has rows that are too few, too short or too long to learn from")
    if count > _DENSEST * (reader.remaining + _SHORT):
        raise CodecError(f"{count} positions do not fit in {reader.remaining} bytes")
    positions = np.empty(count, np.int64)
    code = reader.array("<u1", reader.remaining).copy()  # the kernel is compiled for writable bytes
    if not walk(False, code, *geometry.arrays(shapes), size, positions):
        raise CodecError("the position code leads outside the vector, ends early or has bytes after its end")
    return positions, shapes


def _codable(count: int, size: int) -> bool:
    return 0 < count <= size <= count * SPARSEST and count < MAX_POSITIONS


def _learnable(shapes: Shapes) -> Shapes:
    return [
        shape if shape[0] >= FEWEST_ROWS and SHORTEST_ROW <= shape[1] <= LONGEST_ROW else (1, shape[0] * shape[1])
        for shape in shapes
    ]
