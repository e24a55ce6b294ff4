"""The support of a sparse update as bytes: the shortest of the codes, or the fastest.

The first byte tells the code: 0 to 40 is the Rice parameter of `positions.golomb_rice`, 0x80 begins a code of
`positions.context`.
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
    """One code of some positions, and the rows and columns of the tensors that its reader learns from it."""

    code: bytes
    shapes: Shapes


class Support(NamedTuple):
    """Decoded positions, strictly ascending, and the rows and columns of the tensors in their code."""

    positions: Positions
    shapes: Shapes


def pack(positions: Positions, size: int, layout: Layout | None, coder: Coder) -> bytes:
    """Code strictly ascending `positions` of shape (k,), each from 0 to below `size`.

    Args:
        positions: Shape (k,), int64.
        size: Number of elements of the vector.
        layout: Tensors of the vector, whose rows and columns the context code learns; None for a vector that is one
            row.
        coder: `fast` takes the Golomb-Rice code; `smallest` the shortest of that, the context code with the layout and,
            where the layout makes it no shorter, the context code without.

    Raises:
        ValueError: The positions do not ascend within the vector, or the layout is of another vector.
    """
    if coder == "fast":
        return golomb_rice.pack(positions)
    return min((code.code for code in encode_candidates(positions, size, layout)), key=len)


def encode_candidates(positions: Positions, size: int, layout: Layout | None, worth: int = 0) -> Iterator[Code]:
    """Yield the codes of which `smallest` takes the shortest.

    Args:
        positions: As for `pack`.
        size: As for `pack`.
        layout: As for `pack`.
        worth: Bytes that rows and columns may save the caller elsewhere.
    """
    rice = golomb_rice.pack(positions)
    yield Code(rice, [(1, size)])
    if layout is not None and (code := context.pack(positions, size, layout, len(rice) + worth)):
        yield Code(code, context.to_learnable_shapes(layout, size))
        if len(code) < len(rice):
            return
    if code := context.pack(positions, size, None, len(rice)):
        yield Code(code, [(1, size)])


def unpack(reader: Reader, count: int, size: int) -> Support:
    """Decode `count` positions below `size` from the rest of `reader`.

    Raises:
        CodecError: The bytes are no code of so many positions.
    """
    (first,) = reader.take(1)
    if first == context.MARK:
        return Support(*context.unpack(reader, count, size))
    return Support(golomb_rice.unpack_code(first, reader, count, size), [(1, size)])
