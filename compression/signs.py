"""Values as a sign and a magnitude that many of them share.

Under error feedback what top-k sends lies within a factor of 1.2, and its mean is nearly all there is to say. Where the
magnitudes lie further apart, a second one for the larger of them takes a bit a value.

    bytes          what
    4              one magnitude: the mean or more, float32, 0 or at least 2**-126
    ceil(m / 8)    a bit a value, 1 for a negative one

    8              two magnitudes: that of the smaller values and that of the larger ones, as above and in this order
    ceil(m / 8)    a bit a value, 1 for a negative one
    ceil(m / 8)    a bit a value, 1 for one of the larger

Bits fill each byte from the lowest; the last byte is filled with zeros. Decoding has no arithmetic.
"""

import numpy as np
import numpy.typing as npt

from fedglm.compression.errors import CodecError
from fedglm.compression.vectors import Vector
from fedglm.compression.wire import Reader

_SMALLEST = np.finfo(np.float32).tiny
_LARGEST = float(np.finfo(np.float32).max)
_ITERATIONS = 32
_SAMPLE = 1 << 14
"""Values that are looked at to tell the smaller from the larger ones."""
_BYTES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1, bitorder="little")
"""The bits of each byte, shape (256, 8): looking up eight values at a time is the fastest way to decode them."""
_SIGNS = np.where(_BYTES, np.float32(-1), np.float32(1))


def pack(values: Vector, overshoot: float = 1.0) -> bytes:
    """Code finite `values` of shape (m,) by their signs and one magnitude.

    The magnitude is the mean, or `overshoot` times the smallest where that is more.
    """
    magnitudes = np.abs(values)
    magnitude = _mean(magnitudes)
    if overshoot > 1 and values.size:
        ahead = min(overshoot * float(magnitudes.min()), _LARGEST)
        magnitude = max(magnitude, _mean(np.array([ahead], np.float32)))
    return magnitude.tobytes() + _bits(values < 0)


def unpack(reader: Reader, count: int) -> Vector:
    """Decode `count` values.

    Raises:
        CodecError: too few bytes, a magnitude out of its range, or bits after the end.
    """
    (magnitude,) = _magnitudes(reader, 1)
    return _look_up(reader, count, _SIGNS * magnitude, "signs")


def pack_two(values: Vector) -> bytes:
    """Code finite `values` of shape (m,) by their signs and the nearer of two magnitudes.

    The two lie where the squared error is least (Lloyd, "Least squares quantization in PCM", 1982): each is the mean of
    those nearer to it than to the other.
    """
    magnitudes = np.abs(values)
    large = magnitudes >= _boundary(magnitudes[:: max(1, magnitudes.size // _SAMPLE)])
    means = (_mean(magnitudes[~large]), _mean(magnitudes[large]))
    return b"".join((means[0].tobytes(), means[1].tobytes(), _bits(values < 0), _bits(large)))


def unpack_two(reader: Reader, count: int) -> Vector:
    """Decode `count` values; errors as in `unpack`."""
    magnitudes = _magnitudes(reader, 2)
    values = _look_up(reader, count, _SIGNS, "signs")
    values *= _look_up(reader, count, magnitudes[_BYTES], "magnitudes")
    return values


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


def _bits(flags: npt.NDArray[np.bool_]) -> bytes:
    return np.packbits(flags, bitorder="little").tobytes()


def _magnitudes(reader: Reader, count: int) -> Vector:
    magnitudes: Vector = reader.array("<f4", count).astype(np.float32)
    for magnitude in magnitudes:
        if not (magnitude == 0 or _SMALLEST <= magnitude < np.inf):
            raise CodecError(f"a magnitude of {magnitude}")
    return magnitudes


def _look_up(reader: Reader, count: int, table: Vector, what: str) -> Vector:
    """`count` values, of which each byte of the code holds eight; `table` has shape (256, 8)."""
    code = reader.array("<u1", -(-count // 8))
    if count % 8 and code[-1] >> count % 8:
        raise CodecError(f"the {what} have bits after their end")
    values: Vector = table[code].reshape(-1)[:count]
    return values
