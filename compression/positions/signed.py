"""The support of a sparse update with the signs of its values: whichever of the codes is the shortest together.

    bytes          what
    varint c       0, or one more than the bytes of the signs' code
    ceil(k / 8)    where c is 0: one bit per sign, 1 for a negative one (`bits`)
    c - 1          else: the range code of `kernels.signs`, one symbol per sign
    ...            the positions (`positions.coding`), which take the rest

A gradient is a sum of outer products, and in a token embedding the signs of a column agree: there a sign carries less
than a bit of information, once rows and columns are known. They are known from the code of the positions. Elsewhere,
and where that code has no rows, a sign carries a full bit, and plain bits are the shorter code.
"""

from typing import NamedTuple

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.kernels.signs import code_signs
from fedglm.compression.layout import Layout
from fedglm.compression.positions import coding, context, geometry
from fedglm.compression.positions.coding import Coder
from fedglm.compression.positions.geometry import Shapes
from fedglm.compression.values import bits
from fedglm.compression.vectors import Flags, Positions, Vector
from fedglm.compression.wire.envelope import Reader, varint


class SignedPositions(NamedTuple):
    """Positions of the values, strictly ascending, and whether each is negative; both of shape (k,)."""

    positions: Positions
    negative: Flags


def pack(at: Positions, negative: Flags, size: int, layout: Layout | None, coder: Coder) -> bytes:
    """Code strictly ascending positions `at` and signs of shape (k,); see `coding.pack`.

    Raises:
        ValueError: The positions do not ascend within the vector, or the layout is of another vector.
    """
    plain = varint(0) + bits.pack(negative)
    if coder == "fast":
        return plain + coding.pack(at, size, layout, coder)
    context.check_positions(at, size)
    codes = coding.encode_candidates(at, size, layout, len(plain))
    return min(((_encode_signs(at, negative, shapes) or plain) + code for code, shapes in codes), key=len)


def unpack(reader: Reader, count: int, size: int) -> SignedPositions:
    """Decode `count` positions below `size` and their signs from the rest of `reader`.

    Raises:
        CodecError: The bytes are no code of so many signs and positions.
    """
    length = reader.varint() - 1
    if length < 0:
        negative = bits.unpack(reader, count)
        return SignedPositions(coding.unpack(reader, count, size).positions, negative)
    code = reader.array("<u1", length).copy()  # the kernel is compiled for writable bytes
    if not _is_shorter(length, count):
        raise CodecError(f"the signs' code of {length} bytes is no shorter than {count} plain bits")
    support = coding.unpack(reader, count, size)  # which bounds the memory for so many
    if not _has_rows(support.shapes):
        raise CodecError("the signs are coded by rows and columns, and there are none")
    negative = np.empty(count, np.bool_)
    if not code_signs(False, code, *geometry.to_arrays(support.shapes), support.positions, negative):
        raise CodecError("the code of the signs has bytes after its end, or is not the shortest")
    return SignedPositions(support.positions, negative)


def apply_signs(magnitudes: Vector, negative: Flags) -> Vector:
    """Return the values with these magnitudes (float32) and signs, both of shape (k,)."""
    # By bits, because a multiplication or a selection takes several times as long.
    values = negative.astype(np.uint32) << 31
    values |= np.ascontiguousarray(magnitudes).view(np.uint32)
    return values.view(np.float32)


def _is_shorter(length: int, count: int) -> bool:
    """Return whether a code of `length` bytes is shorter than `count` plain bits, both with their varint."""
    return len(varint(length + 1)) + length < 1 + -(-count // 8)


def _has_rows(shapes: Shapes) -> bool:
    return any(rows > 1 for rows, _ in shapes)


def _encode_signs(at: Positions, negative: Flags, shapes: Shapes) -> bytes | None:
    """Code the signs by rows and columns; None where that is no shorter than one bit per sign."""
    if not _has_rows(shapes):
        return None
    code = np.empty(-(-at.size // 8), np.uint8)
    length = code_signs(True, code, *geometry.to_arrays(shapes), at, negative)
    return varint(length + 1) + code[:length].tobytes() if _is_shorter(length, at.size) else None
