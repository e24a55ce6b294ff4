"""Float32 values as float16 with a power-of-two scale per block, so that no value overflows or underflows.

Plain float16 is infinite above 65504 and zero below 3e-8, the range of updates. Here a block's largest magnitude is
scaled to [2**14, 2**15), near the top of float16: values down to 2**-28 of it keep all 11 bits.

    bytes            what
    ceil(m / 1024)   int8 shift of each block, -102 to 113
    2 m              float16 of value * 2**-shift, each magnitude at most 32752

Decoding has no rounding: a float16 times a power of two is a normal float32 or zero, on every processor and even where
subnormals are flushed. The two bounds ensure it: 2**-24 * 2**-102 is the smallest normal float32, and 32752 * 2**113
(32752 is the largest float16 below 2**15) is the largest float32 with 11 bits.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fedglm.compression.errors import CodecError
from fedglm.compression.values import blocks
from fedglm.compression.vectors import Vector
from fedglm.compression.wire.envelope import Reader

_TOP = 15
_SHIFTS = (-102, 113)
_LARGEST = np.float32(32752)


def pack(values: Vector) -> bytes:
    """Code finite float32 `values` of shape (m,)."""
    shifts = np.empty(blocks.count(values.size), np.int8)
    numbers = np.empty(values.size, "<f2")
    for elements, its_blocks in blocks.split(values.size):
        _, exponents = np.frexp(blocks.block_maxima(values[elements]))
        shifts[its_blocks] = np.clip(exponents - _TOP, *_SHIFTS)
        scaled = values[elements] * _repeat_powers(-shifts[its_blocks], values[elements].size)
        numbers[elements] = np.clip(scaled, -_LARGEST, _LARGEST)
    return b"".join((shifts.data, numbers.data))


def unpack(reader: Reader, count: int) -> Vector:
    """Decode `count` values to float32 of shape (count,).

    Raises:
        CodecError: There are too few bytes, or a shift or a value is out of its range.
    """
    shifts = reader.array("<i1", blocks.count(count))
    numbers = reader.array("<f2", count)
    if shifts.size and (shifts.min() < _SHIFTS[0] or shifts.max() > _SHIFTS[1]):
        raise CodecError("a block's shift is out of range")
    values = np.empty(count, np.float32)
    for elements, its_blocks in blocks.split(count):
        scaled = numbers[elements].astype(np.float32)
        if not (np.abs(scaled) <= _LARGEST).all():  # a NaN fails too
            raise CodecError("a float16 value is out of range")
        np.multiply(scaled, _repeat_powers(shifts[its_blocks], scaled.size), out=values[elements])
    return values


def _repeat_powers(shifts: npt.NDArray[np.int8], size: int) -> npt.NDArray[Any]:
    """Return 2**shift of each block for each of its values, shape (size,), float32, exact."""
    return blocks.repeat_scales(np.ldexp(np.float32(1), shifts), size)
