"""Float32 values as integers from -127 to 127 with one scale for each 1024 of them.

    bytes               what
    4 ceil(m / 1024)    float32 scale of each block, 0 or from 2**-126 to 2**121
    m                   int8

A value is `int8 * scale`, one IEEE multiplication that neither overflows nor gives a subnormal, so it has the same bits
everywhere. The scale is the block's largest magnitude / 127; the error is at most half of it.
"""

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.values import blocks
from fedglm.compression.vectors import Vector
from fedglm.compression.wire.envelope import Reader

_LEVELS = 127
_SMALLEST = np.finfo(np.float32).tiny
_LARGEST = np.float32(2.0**121)


def pack(values: Vector) -> bytes:
    """Code finite float32 `values` of shape (m,)."""
    scales = np.empty(blocks.count(values.size), "<f4")
    levels = np.empty(values.size, np.int8)
    for elements, its_blocks in blocks.split(values.size):
        scale = np.minimum(blocks.block_maxima(values[elements]) / np.float32(_LEVELS), _LARGEST)
        scale[scale < _SMALLEST] = 0
        divisors = np.where(scale > 0, scale, np.float32(np.inf))
        level = np.rint(values[elements] / blocks.repeat_scales(divisors, values[elements].size))
        scales[its_blocks] = scale
        levels[elements] = np.clip(level, -_LEVELS, _LEVELS)
    return b"".join((scales.data, levels.data))


def unpack(reader: Reader, count: int) -> Vector:
    """Decode `count` values to float32 of shape (count,).

    Raises:
        CodecError: There are too few bytes, a scale is out of its range, or an int8 is -128.
    """
    scales = reader.array("<f4", blocks.count(count)).astype(np.float32)
    levels = reader.array("<i1", count)
    if not ((scales == 0) | ((scales >= _SMALLEST) & (scales <= _LARGEST))).all():
        raise CodecError("a block's scale is out of range")
    if (levels < -_LEVELS).any():
        raise CodecError("an int8 value of -128")
    values = np.empty(count, np.float32)
    for elements, its_blocks in blocks.split(count):
        np.multiply(
            levels[elements], blocks.repeat_scales(scales[its_blocks], levels[elements].size), out=values[elements]
        )
    return values
