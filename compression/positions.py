"""The support of a sparse update as bytes: the shortest of the codes, or the fastest.

The first byte says which code it is: 0 to 40 is the Rice parameter of `golomb_rice`, 0x80 begins `context_positions`.
"""

from typing import Literal, TypeAlias

from fedglm.compression import context_positions, golomb_rice
from fedglm.compression.layout import Layout
from fedglm.compression.vectors import Positions
from fedglm.compression.wire import Reader

Coder: TypeAlias = Literal["smallest", "fast"]

_CLEARLY_SHORTER = 0.97
"""Of the Rice code: a memoryless code does not get there, so it need not be tried."""


def pack(positions: Positions, size: int, layout: Layout | None, coder: Coder) -> bytes:
    """Code strictly ascending `positions` of shape (k,), each from 0 to below `size`.

    Args:
        positions: int64.
        size: elements of the vector.
        layout: its tensors, whose rows and columns the context code learns; None for a vector that is one row.
        coder: `fast` takes the Golomb-Rice code; `smallest` the shortest of that, the context code with the layout and
            the one without, which is shorter by the geometry where rows and columns say nothing.

    Raises:
        ValueError: positions that do not ascend within the vector, or the layout of another vector.
    """
    rice = best = golomb_rice.pack(positions)
    if coder == "fast":
        return rice
    if layout is not None:
        best = context_positions.pack(positions, size, layout, len(best)) or best
    if len(best) > _CLEARLY_SHORTER * len(rice):
        best = context_positions.pack(positions, size, None, len(best)) or best
    return best


def unpack(reader: Reader, count: int, size: int) -> Positions:
    """Decode `count` positions below `size` from all that is left of `reader`.

    Raises:
        CodecError: no code of so many positions; see the codes.
    """
    (first,) = reader.take(1)
    if first == context_positions.MARK:
        return context_positions.unpack(reader, count, size)
    return golomb_rice.unpack_code(first, reader, count, size)
