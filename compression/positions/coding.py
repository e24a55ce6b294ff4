"""The support of a sparse update as bytes: the shortest of the codes, or the fastest.

The first byte says which code it is: 0 to 40 is the Rice parameter of `golomb_rice`, 0x80 begins `context_positions`.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, TypeAlias

from fedglm.compression.layout import Layout
from fedglm.compression.positions import context, golomb_rice
from fedglm.compression.positions.geometry import Shapes
from fedglm.compression.vectors import Positions
from fedglm.compression.wire.envelope import Reader

Coder: TypeAlias = Literal["smallest", "fast"]


class Code(NamedTuple):
    """One code of some positions, and rows and columns of the tensors that it tells its reader of."""

    code: bytes
    shapes: Shapes


class Support(NamedTuple):
    """Decoded positions, strictly ascending, and the rows and columns that their code told of."""

    positions: Positions
    shapes: Shapes


def pack(positions: Positions, size: int, layout: Layout | None, coder: Coder) -> bytes:
    """Code strictly ascending `positions` of shape (k,), each from 0 to below `size`.

    Args:
        positions: int64.
        size: elements of the vector.
        layout: its tensors, whose rows and columns the context code learns; None for a vector that is one row.
        coder: `fast` takes the Golomb-Rice code; `smallest` the shortest of that, the context code with the layout and,
            where that is none the shorter for it, the one without.

    Raises:
        ValueError: positions that do not ascend within the vector, or the layout of another vector.
    """
    if coder == "fast":
        return golomb_rice.pack(positions)
    return min((code.code for code in codes(positions, size, layout)), key=len)


def codes(positions: Positions, size: int, layout: Layout | None, worth: int = 0) -> Iterator[Code]:
    """The codes among which `smallest` has to look.

    Args:
        positions: as for `pack`.
        size: as for `pack`.
        layout: as for `pack`.
        worth: bytes that rows and columns may spare the caller elsewhere.
    """
    rice = golomb_rice.pack(positions)
    yield Code(rice, [(1, size)])
    if layout is not None and (code := context.pack(positions, size, layout, len(rice) + worth)):
        yield Code(code, context.shapes_of(layout, size))
        if len(code) < len(rice):
            return
    if code := context.pack(positions, size, None, len(rice)):
        yield Code(code, [(1, size)])


def unpack(reader: Reader, count: int, size: int) -> Support:
    """Decode `count` positions below `size` from all that is left of `reader`.

    Raises:
        CodecError: no code of so many positions; see the codes.
    """
    (first,) = reader.take(1)
    if first == context.MARK:
        return Support(*context.unpack(reader, count, size))
    return Support(golomb_rice.unpack_code(first, reader, count, size), [(1, size)])
