"""Magnitudes that many values share; their signs travel beside them (`signed_positions`).

Under error feedback what top-k sends lies within a factor of 1.2, and its mean is nearly all there is to say. Where the
magnitudes lie further apart, a second one for the larger of them takes a bit a value.

    bytes          what
    4              one magnitude: the mean or more, float32, 0 or at least 2**-126

    8              two magnitudes: that of the smaller values and that of the larger ones, as above and in this order
    ceil(m / 8)    a bit a value, 1 for one of the larger, as in `bits`

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
"""Values that are looked at to tell the smaller from the larger ones."""


def pack(values: Vector, overshoot: float = 1.0) -> bytes:
    """Code finite `values` of shape (m,) by one magnitude.

    It is the mean, or `overshoot` times the smallest where that is more.
    """
    magnitudes = np.abs(values)
    magnitude = _mean(magnitudes)
    if overshoot > 1 and values.size:
        ahead = min(overshoot * float(magnitudes.min()), _LARGEST)
        magnitude = max(magnitude, _mean(np.array([ahead], np.float32)))
    return magnitude.tobytes()


def unpack(reader: Reader, count: int) -> Vector:
    """Decode `count` magnitudes, as a view of the one: it takes no memory, whatever a stranger's count is.

    Raises:
        CodecError: too few bytes, or a magnitude out of its range.
    """
    return np.broadcast_to(_magnitudes(reader, 1), count)


def pack_two(values: Vector) -> bytes:
    """Code finite `values` of shape (m,) by the nearer of two magnitudes.

    The two lie where the squared error is least (Lloyd, "Least squares quantization in PCM", 1982): each is the mean of
    those nearer to it than to the other.
    """
    magnitudes = np.abs(values)
    large = magnitudes >= _boundary(magnitudes[:: max(1, magnitudes.size // _SAMPLE)])
    means = (_mean(magnitudes[~large]), _mean(magnitudes[large]))
    return b"".join((means[0].tobytes(), means[1].tobytes(), bits.pack(large)))


def unpack_two(reader: Reader, count: int) -> Vector:
    """Decode `count` magnitudes; errors as in `unpack`, and bits after the end."""
    magnitudes = _magnitudes(reader, 2)
    return magnitudes[bits.unpack(reader, count).view(np.uint8)]


def _mean(magnitudes: Vector) -> np.float32:
    """The mean as it is sent: a subnormal one is 0, for some machines flush it."""
    mean = np.float32(magnitudes.mean(dtype=np.float64) if magnitudes.size else 0)
    return mean if mean >= _SMALLEST else np.float32(0)


def _boundary(magnitudes: Vector) -> np.float32:
    """The magnitude from which on the larger of two means is the nearer one."""
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


def _magnitudes(reader: Reader, count: int) -> Vector:
    magnitudes: Vector = reader.array("<f4", count).astype(np.float32)
    for magnitude in magnitudes:
        if not (magnitude == 0 or _SMALLEST <= magnitude < np.inf):
            raise CodecError(f"a magnitude of {magnitude}")
    return magnitudes
