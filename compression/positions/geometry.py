"""Rows and columns of the tensors behind a vector, coded within a blob so that its reader needs no layout.

    number   what
    t        tensors, at most 65536; 0 for a vector that is one row, and then there is nothing more
    ...      steps, until there are so many tensors:
             2 i        the i-th of the distinct shapes so far; where i is their number a new one follows: rows, columns
             2 d + 1    a copy of earlier tensors, starting d tensors back, and how many: layers repeat

Rows and columns are a number each: (m << 6 | e) for (2 m + 1) 2**e, since most are multiples of a power of two. A
number takes nibbles (half bytes), the lower nibble of a byte first: three bits each, the lowest first, and the top bit
set on all but the last; an unused last nibble is 0. Each geometry has one code, and `unpack` refuses any other.
"""

import math
from typing import TypeAlias

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.layout import MAX_SIZE, MAX_TENSORS, Layout
from fedglm.compression.vectors import Positions
from fedglm.compression.wire.envelope import Reader

Shapes: TypeAlias = list[tuple[int, int]]
"""Rows and columns of each tensor of a vector, in order."""

_SHORTEST_COPY = 3
_MAX_NIBBLES = 21
"""Maximum nibbles of a number: 63 bits."""


def to_shapes(layout: Layout | None, size: int) -> Shapes:
    """Return (rows, columns) of each tensor of a vector of `size` elements: its first dimension, and all others.

    A tensor of one dimension or none is a row, and so is the vector where there is no layout.

    Raises:
        ValueError: The layout is of a vector of another size.
    """
    if layout is None:
        return [(1, size)]
    if layout.size != size:
        raise ValueError(f"a layout of {layout.size} elements for a vector of {size}")
    return [(shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape)) for shape in layout.shapes]


def to_arrays(shapes: Shapes) -> tuple[Positions, Positions]:
    """Return rows and columns as the kernels take them, each of shape (tensors,), int64."""
    rows, columns = np.array(shapes, np.int64).T.copy()
    return rows, columns


def pack(shapes: Shapes) -> bytes:
    """Return the one code of these rows and columns."""
    if len(shapes) == 1 and shapes[0][0] == 1:
        return _pack_nibbles([0])
    numbers = [len(shapes)]
    table: dict[tuple[int, int], int] = {}
    seen: dict[tuple[tuple[int, int], ...], int] = {}  # last index of each two successive shapes
    at = 0
    while at < len(shapes):
        source = seen.get(tuple(shapes[at : at + 2]), at)
        length = 0
        while source < at and at + length < len(shapes) and shapes[source + length] == shapes[at + length]:
            length += 1
        if length >= _SHORTEST_COPY:
            numbers += 2 * (at - source) + 1, length
        else:
            length = 1
            numbers.append(2 * table.get(shapes[at], len(table)))
            if shapes[at] not in table:
                table[shapes[at]] = len(table)
                numbers += map(_encode_dimension, shapes[at])
        for index in range(at, at + length):
            seen[tuple(shapes[index : index + 2])] = index
        at += length
    return _pack_nibbles(numbers)


def unpack(reader: Reader, size: int) -> Shapes:
    """Read what `pack` wrote for a vector of `size` elements.

    Raises:
        CodecError: The bytes are not the one code of tensors with so many elements.
    """
    code = bytearray()
    pending: list[int] = []  # the upper nibble of the last byte

    def read_number() -> int:
        value = 0
        for index in range(_MAX_NIBBLES):
            if not pending:
                code.extend(reader.take(1))
                pending.extend((code[-1] >> 4, code[-1] & 15))
            nibble = pending.pop()
            value |= (nibble & 7) << 3 * index
            if nibble < 8:
                return value
        raise CodecError("the geometry holds a number that does not end")

    tensors = read_number()
    if tensors == 0 and code == b"\0":
        return [(1, size)]
    if tensors > MAX_TENSORS:
        raise CodecError(f"a geometry of {tensors} tensors; the limit is {MAX_TENSORS}")
    shapes: Shapes = []
    table: list[tuple[int, int]] = []
    while len(shapes) < tensors:
        step = read_number()
        index = step >> 1
        if step & 1:
            length = read_number()
            if not 0 < index <= len(shapes) or length > tensors - len(shapes):
                raise CodecError("the geometry copies tensors that are not there")
            for _ in range(length):
                shapes.append(shapes[-index])
        else:
            if index > len(table):
                raise CodecError("the geometry uses a shape before it is there")
            if index == len(table):
                table.append((_decode_dimension(read_number()), _decode_dimension(read_number())))
            shapes.append(table[index])
    if sum(rows * columns for rows, columns in shapes) != size:
        raise CodecError(f"the geometry is not one of {size} elements")
    if pack(shapes) != code:
        raise CodecError("the geometry is not in its one form")
    return shapes


def _pack_nibbles(numbers: list[int]) -> bytes:
    nibbles = []
    for number in numbers:
        while number > 7:
            nibbles.append(number & 7 | 8)
            number >>= 3
        nibbles.append(number)
    if len(nibbles) % 2:
        nibbles.append(0)
    return bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))


def _encode_dimension(number: int) -> int:
    twos = (number & -number).bit_length() - 1
    return number >> twos + 1 << 6 | twos


def _decode_dimension(code: int) -> int:
    twos = code & 63
    number = (code >> 6 << 1 | 1) << twos
    if number > MAX_SIZE:
        raise CodecError(f"the geometry has a tensor of {number} rows or columns; the limit is {MAX_SIZE}")
    return number
