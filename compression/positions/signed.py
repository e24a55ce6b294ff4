"""The support of a sparse update with the signs of its values: whichever of the codes is the shortest together.

    bytes          what
    varint c       0, or one more than the bytes of the signs' code
    ceil(k / 8)    where c is 0: a bit a sign, 1 for a negative one (`bits`)
    c - 1          else: the range code of `sign_kernels`, one symbol a sign
    ...            the positions (`positions`), which take the rest

A gradient is a sum of outer products, and in a token embedding whole columns lean to one side: there a sign says less
than a bit, once rows and columns are known. They are those that the code of the positions has told. Elsewhere, and
where that code tells of no rows, a sign says all of its bit: plain bits are the shorter code then.
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
    """Where the values are, strictly ascending, and which of them are negative; both of shape (k,)."""

    positions: Positions
    negative: Flags


def pack(at: Positions, negative: Flags, size: int, layout: Layout | None, coder: Coder) -> bytes:
    """Code strictly ascending positions `at` and signs of shape (k,); see `positions.pack`.

    Raises:
        ValueError: positions that do not ascend within the vector, or the layout of another vector.
    """
    plain = varint(0) + bits.pack(negative)
    if coder == "fast":
        return plain + coding.pack(at, size, layout, coder)
    context.check(at, size)
    codes = coding.codes(at, size, layout, len(plain))
    return min(((_learnt(at, negative, shapes) or plain) + code for code, shapes in codes), key=len)


def unpack(reader: Reader, count: int, size: int) -> SignedPositions:
    """Decode `count` positions below `size` and their signs from all that is left of `reader`.

    Raises:
        CodecError: anything but the code of so many; see also `positions`.
    """
    length = reader.varint() - 1
    if length < 0:
        negative = bits.unpack(reader, count)
        return SignedPositions(coding.unpack(reader, count, size).positions, negative)
    code = reader.array("<u1", length).copy()  # the kernel is compiled for writable bytes
    if not _is_shorter(length, count):
        raise CodecError(f"the signs' code of {length} bytes is no shorter than {count} plain bits")
    found = coding.unpack(reader, count, size)  # which bounds the memory for so many
    if not _has_rows(found.shapes):
        raise CodecError("the signs are coded by rows and columns, and there are none")
    negative = np.empty(count, np.bool_)
    if not code_signs(False, code, *geometry.arrays(found.shapes), found.positions, negative):
        raise CodecError("the code of the signs has bytes after its end, or is not the shortest")
    return SignedPositions(found.positions, negative)


def with_signs(magnitudes: Vector, negative: Flags) -> Vector:
    """The values of these magnitudes and signs, both of shape (k,)."""
    # By bits, for a product or a choice takes several times as long.
    values = negative.astype(np.uint32) << 31
    values |= np.ascontiguousarray(magnitudes).view(np.uint32)
    return values.view(np.float32)


def _is_shorter(length: int, count: int) -> bool:
    """Whether a code of so many bytes is shorter than a bit for each of `count` signs, both with their varint."""
    return len(varint(length + 1)) + length < 1 + -(-count // 8)


def _has_rows(shapes: Shapes) -> bool:
    return any(rows > 1 for rows, _ in shapes)


def _learnt(at: Positions, negative: Flags, shapes: Shapes) -> bytes | None:
    """The signs by rows and columns, where that is shorter than a bit a sign."""
    if not _has_rows(shapes):
        return None
    code = np.empty(-(-at.size // 8), np.uint8)
    length = code_signs(True, code, *geometry.arrays(shapes), at, negative)
    return varint(length + 1) + code[:length].tobytes() if _is_shorter(length, at.size) else None
