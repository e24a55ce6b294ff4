"""One or two magnitudes shared by many values; the signs are coded with the positions (`positions.signed`).

Under error feedback the magnitudes that top-k sends lie within a factor of 1.2, and their mean is nearly sufficient.
Where they lie further apart, a second magnitude for the larger of them takes one bit per value.

    bytes          what
    4              one magnitude: the mean or more, float32, 0 or at least 2**-126

    8              two magnitudes: that of the smaller values and that of the larger ones, as above and in this order
    ceil(m / 8)    one bit per value, 1 for one of the larger, as in `bits`

Decoding has no arithmetic.
"""

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.values import bits
from fedglm.compression.vectors import Vector
from fedglm.compression.wire.envelope import Reader

_SMALLEST = np.finfo(np.float32).tiny
_LARGEST = float(np.finfo(np.float32).max)
_ITERATIONS = 32
_SAMPLE = 1 << 14
"""Number of values from which the boundary between the smaller and the larger ones is estimated."""


def pack(values: Vector, overshoot: float = 1.0) -> bytes:
    """Code finite `values` of shape (m,) by one magnitude.

    It is the mean, or `overshoot` times the smallest value where that is larger.
    """
    magnitudes = np.abs(values)
    magnitude = _mean(magnitudes)
    if overshoot > 1 and values.size:
        ahead = min(overshoot * float(magnitudes.min()), _LARGEST)
        magnitude = max(magnitude, _mean(np.array([ahead], np.float32)))
    return magnitude.tobytes()


def unpack(reader: Reader, count: int) -> Vector:
    """Decode `count` magnitudes as a view of the one, float32: it takes no memory, whatever an untrusted count is.

    Raises:
        CodecError: There are too few bytes, or the magnitude is out of its range.
    """
    return np.broadcast_to(_read_magnitudes(reader, 1), count)


def pack_two(values: Vector) -> bytes:
    """Code finite `values` of shape (m,) by the nearer of two magnitudes.

    The two minimize the squared error (Lloyd, "Least squares quantization in PCM", 1982): each is the mean of the
    values nearer to it than to the other.
    """
    magnitudes = np.abs(values)
    large = magnitudes >= _find_boundary(magnitudes[:: max(1, magnitudes.size // _SAMPLE)])
    means = (_mean(magnitudes[~large]), _mean(magnitudes[large]))
    return b"".join((means[0].tobytes(), means[1].tobytes(), bits.pack(large)))


def unpack_two(reader: Reader, count: int) -> Vector:
    """Decode `count` magnitudes, float32 of shape (count,).

    Raises:
        CodecError: As by `unpack`, or bits are set after the end.
    """
    magnitudes = _read_magnitudes(reader, 2)
    return magnitudes[bits.unpack(reader, count).view(np.uint8)]


def _mean(magnitudes: Vector) -> np.float32:
    """Return the mean as it is sent: a subnormal one becomes 0, since some machines flush it."""
    mean = np.float32(magnitudes.mean(dtype=np.float64) if magnitudes.size else 0)
    return mean if mean >= _SMALLEST else np.float32(0)


def _find_boundary(magnitudes: Vector) -> np.float32:
    """Return the magnitude from which on the larger of the two means is the nearer one."""
    boundary = np.float32(magnitudes.mean(dtype=np.float64) if magnitudes.size else 0)
    for _ in range(_ITERATIONS):
        large = magnitudes >= boundary
        if large.all() or not large.any():
            break
        means = magnitudes[large].mean(dtype=np.float64), magnitudes[~large].mean(dtype=np.float64)
        before, boundary = boundary, np.float32(sum(means) / 2)
        if boundary == before:
            break
    return boundary


def _read_magnitudes(reader: Reader, count: int) -> Vector:
    magnitudes: Vector = reader.array("<f4", count).astype(np.float32)
    for magnitude in magnitudes:
        if not (magnitude == 0 or _SMALLEST <= magnitude < np.inf):
            raise CodecError(f"a magnitude of {magnitude}")
    return magnitudes
