"""Rows and columns of the tensors behind a vector, coded within a blob so that its reader needs no layout.

    number   what
    t        tensors, at most 65536; 0 for a vector that is one row, and then there is nothing more
    ...      steps, until there are so many tensors:
             2 i        the i-th of the shapes so far; where i is their number a new one follows: rows, columns
             2 d + 1    a copy of tensors from d before here, and how many: layers repeat

Rows and columns are a number each: (m << 6 | e) for (2 m + 1) 2**e, since most are round in binary. A number takes half
bytes, the lower half of a byte first: three bits each, the lowest first, and the top bit set on all but the last; a
half that is left over is 0. Each geometry has one code, and `unpack` refuses any other.
"""

import math
from typing import TypeAlias

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.layout import MAX_SIZE, MAX_TENSORS, Layout
from fedglm.compression.vectors import Positions
from fedglm.compression.wire.envelope import Reader

Shapes: TypeAlias = list[tuple[int, int]]
"""Rows and columns of the tensors of a vector, laid end to end."""

_SHORTEST_COPY = 3
_HALVES = 21
"""Of a number, at most: 63 bits."""


def shapes_of(layout: Layout | None, size: int) -> Shapes:
    """(rows, columns) of each tensor of a vector of `size` elements: its first dimension, and all others.

    What has one dimension or none is a row, and so is the whole vector where there is no layout.

    Raises:
        ValueError: the layout of a vector of another size.
    """
    if layout is None:
        return [(1, size)]
    if layout.size != size:
        raise ValueError(f"a layout of {layout.size} elements for a vector of {size}")
    return [(shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape)) for shape in layout.shapes]


def arrays(shapes: Shapes) -> tuple[Positions, Positions]:
    """Rows and columns as the kernels take them, each of shape (tensors,), int64."""
    rows, columns = np.array(shapes, np.int64).T.copy()
    return rows, columns


def pack(shapes: Shapes) -> bytes:
    """The one code of these rows and columns."""
    if len(shapes) == 1 and shapes[0][0] == 1:
        return _halves([0])
    numbers = [len(shapes)]
    table: dict[tuple[int, int], int] = {}
    seen: dict[tuple[tuple[int, int], ...], int] = {}  # where two shapes in a row came last
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
                numbers += map(_number_code, shapes[at])
        for index in range(at, at + length):
            seen[tuple(shapes[index : index + 2])] = index
        at += length
    return _halves(numbers)


def unpack(reader: Reader, size: int) -> Shapes:
    """Read what `pack` wrote for a vector of `size` elements.

    Raises:
        CodecError: anything but the one code of rows and columns that make up so many elements.
    """
    code = bytearray()
    waiting: list[int] = []  # the upper half of the last byte

    def number() -> int:
        value = 0
        for index in range(_HALVES):
            if not waiting:
                code.extend(reader.take(1))
                waiting.extend((code[-1] >> 4, code[-1] & 15))
            half = waiting.pop()
            value |= (half & 7) << 3 * index
            if half < 8:
                return value
        raise CodecError("the geometry holds a number that does not end")

    tensors = number()
    if tensors == 0 and code == b"\0":
        return [(1, size)]
    if tensors > MAX_TENSORS:
        raise CodecError(f"a geometry of {tensors} tensors; the limit is {MAX_TENSORS}")
    shapes: Shapes = []
    table: list[tuple[int, int]] = []
    while len(shapes) < tensors:
        step = number()
        index = step >> 1
        if step & 1:
            length = number()
            if not 0 < index <= len(shapes) or length > tensors - len(shapes):
                raise CodecError("the geometry copies tensors that are not there")
            for _ in range(length):
                shapes.append(shapes[-index])
        else:
            if index > len(table):
                raise CodecError("the geometry uses a shape before it is there")
            if index == len(table):
                table.append((_number(number()), _number(number())))
            shapes.append(table[index])
    if sum(rows * columns for rows, columns in shapes) != size:
        raise CodecError(f"the geometry is not one of {size} elements")
    if pack(shapes) != code:
        raise CodecError("the geometry is not in its one form")
    return shapes


def _halves(numbers: list[int]) -> bytes:
    halves = []
    for number in numbers:
        while number > 7:
            halves.append(number & 7 | 8)
            number >>= 3
        halves.append(number)
    if len(halves) % 2:
        halves.append(0)
    return bytes(low | high << 4 for low, high in zip(halves[::2], halves[1::2], strict=True))


def _number_code(number: int) -> int:
    twos = (number & -number).bit_length() - 1
    return number >> twos + 1 << 6 | twos


def _number(code: int) -> int:
    twos = code & 63
    number = (code >> 6 << 1 | 1) << twos
    if number > MAX_SIZE:
        raise CodecError(f"the geometry has a tensor of {number} rows or columns; the limit is {MAX_SIZE}")
    return number
