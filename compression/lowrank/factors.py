"""A vector as quantized low-rank factors: their integer entries, and the vector that they represent.

A component of a matrix is `p q^T 2**e`, with integer vectors p and q. Products and sums of integers are exact in any
order, so every processor and every BLAS rebuilds the same bits. Tensors that are no matrix are integer multiples of the
step.

    bytes  what
    1      log2 of the step, int8, -126 to 127
    ...    range code (`kernels.factors`): components of each matrix, their octaves, all integers

The octave k of a component gives its exponent: e = log2(step) - k. So 2**k is about its singular value in steps, which
tells a reader the size of its entries before the first of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglm.compression.errors import CodecError
from fedglm.compression.kernels import factors as kernels
from fedglm.compression.kernels.factors import Levels, Numbers
from fedglm.compression.vectors import Vector
from fedglm.compression.wire.envelope import Reader

MIN_SIDE = 4
"""Minimum rows and columns of a matrix that is coded by factors."""
STEPS = (-126, 127)
"""Smallest and largest log2 of the step."""
MIN_EXPONENT = -126
"""Minimum exponent of a component: the rebuilt values are multiples of 2**exponent, and none may be subnormal."""
_EXACT = 2.0**53
_ENTRIES_PER_BYTE = 1 << 14
_SPARE_BYTES = 32
"""Zeros that a reader takes beyond a code's end, and the bytes of its current window."""
_PRODUCTS_PER_CODED = 32
"""Number of products of entries that are summed in the time that an entropy decoder takes for one element."""
_BLOCK = 1 << 16
"""Number of elements that are rebuilt at a time, so that the intermediate float64 values take little memory."""


class Frame:
    """The matrices and the other (plain) tensors of a vector.

    Args:
        shapes: Rows and columns of each tensor, in the vector's order.

    Attributes:
        matrices: Start, rows and columns of each matrix.
        sides: Longer and shorter side of each matrix, (T, 2), int64.
        limits: Maximum components of each matrix, (T,): more would have more entries than the matrix.
        plain: Slice of each run of other tensors.
        lengths: Number of elements of each of those, (P,), int64.
        size: Number of elements of the vector.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]]) -> None:
        self.matrices: list[tuple[int, int, int]] = []
        self.plain: list[slice] = []
        at = 0
        for rows, columns in shapes:
            if min(rows, columns) >= MIN_SIDE:
                self.matrices.append((at, rows, columns))
            elif self.plain and self.plain[-1].stop == at:
                self.plain[-1] = slice(self.plain[-1].start, at + rows * columns)
            else:
                self.plain.append(slice(at, at + rows * columns))
            at += rows * columns
        self.size = at
        sides = [(max(rows, columns), min(rows, columns)) for _, rows, columns in self.matrices]
        self.sides = np.array(sides, np.int64).reshape(-1, 2)
        self.limits = self.sides.prod(axis=1) // np.maximum(self.sides.sum(axis=1), 1)
        self.lengths = np.array([part.stop - part.start for part in self.plain], np.int64)


@dataclass(frozen=True, eq=False)
class Factors:
    """The integers of a coded vector.

    Attributes:
        step: Log2 of the step.
        counts: Number of components of each matrix, (T,), int64.
        octaves: Octave of each component, descending within a matrix, (sum of counts,), int64.
        plain: Class of each plain tensor, (P,), int64; 0 where all of it is zero.
        levels: For each component the factor of the shorter side, then that of the longer; then the plain tensors
            that are not zero; int32.
    """

    step: int
    counts: Numbers
    octaves: Numbers
    plain: Numbers
    levels: Levels

    def pack(self, frame: Frame) -> bytes:
        """Encode the factors.

        Raises:
            ValueError: The step is out of range.
        """
        if not STEPS[0] <= self.step <= STEPS[1]:
            raise ValueError(f"a step of 2**{self.step} cannot be said")
        code = np.empty(64 + 2 * self.levels.size, np.uint8)
        for _ in range(2):
            length = kernels.encode_factors(
                frame.sides, self.counts, self.octaves, frame.lengths, self.plain, self.levels, code
            )
            if length <= code.size:
                break
            code = np.empty(length, np.uint8)
        return bytes([self.step & 0xFF]) + code[:length].tobytes()

    @classmethod
    def unpack(cls, reader: Reader, frame: Frame) -> "Factors":
        """Decode the factors from the rest of `reader`.

        Raises:
            CodecError: The step is out of range, a matrix has too many components, a number is too large, or the code
                is too long or too short.
        """
        step = int(reader.array("<i1", 1)[0])
        if not STEPS[0] <= step <= STEPS[1]:
            raise CodecError(f"a step of 2**{step}")
        counts, plain = np.zeros(len(frame.matrices), np.int64), np.zeros(len(frame.plain), np.int64)
        code = reader.array("<u1", reader.remaining).copy()  # writable, as an encoder's: one compiled kernel for both
        # A component takes at least two bits, for a sign in each factor, and an entry at least 1 / 1900 of a bit.
        octaves = np.zeros(min(int(frame.limits.sum()), 4 * (code.size + _SPARE_BYTES)), np.int64)
        limits = np.minimum(frame.limits, octaves.size)
        if not kernels.read_shapes(code, limits, counts, octaves, plain):
            raise CodecError("the code of the factors is damaged")
        entries = int((counts * frame.sides.sum(axis=1)).sum() + frame.lengths[plain > 0].sum())
        if entries > _ENTRIES_PER_BYTE * (code.size + _SPARE_BYTES):
            raise CodecError(f"{entries} entries of factors do not fit in {code.size} bytes")
        levels = np.empty(entries, np.int32)
        if not kernels.decode_factors(frame.sides, limits, counts, octaves, frame.lengths, plain, code, levels):
            raise CodecError("the code of the factors is damaged")
        return cls(step, counts, octaves[: counts.sum()], plain, levels)

    def work(self, frame: Frame) -> int:
        """Return the cost of reading the levels and of `to_vector`, in the unit of `Update.work`."""
        products = sum(
            count * rows * columns
            for count, (_, rows, columns) in zip(self.counts.tolist(), frame.matrices, strict=True)
        )
        return int(self.levels.size + products // _PRODUCTS_PER_CODED)

    def to_vector(self, frame: Frame) -> Vector:
        """Rebuild the vector, shape (n,), float32; each value is rounded once.

        Raises:
            CodecError: Factors are so large that their sum would not be exact, or steps too small for float32.
        """
        vector = np.zeros(frame.size, np.float32)
        at = component = 0
        for (start, rows, columns), count in zip(frame.matrices, self.counts.tolist(), strict=True):
            if not count:
                continue
            longer, shorter = max(rows, columns), min(rows, columns)
            entries = self.levels[at : at + count * (longer + shorter)].reshape(count, longer + shorter)
            exponents = self.step - self.octaves[component : component + count]
            q, p = entries[:, :shorter], entries[:, shorter:]
            left, right = (p, q) if rows >= columns else (q, p)
            _rebuild(left, right, exponents, vector[start : start + rows * columns].reshape(rows, columns))
            at += entries.size
            component += count
        for part, kind in zip(frame.plain, self.plain.tolist(), strict=True):
            if kind:
                levels = self.levels[at : at + part.stop - part.start]
                vector[part] = to_float32(np.ldexp(levels.astype(np.float64), self.step))
                at += levels.size
        return vector


def _rebuild(left: Levels, right: Levels, exponents: Numbers, out: npt.NDArray[np.float32]) -> None:
    """Write the sum of `left[i] right[i]^T 2**exponents[i]` to `out` (rows, columns)."""
    smallest = int(exponents.min())
    if smallest < MIN_EXPONENT:  # the sum is a multiple of 2**smallest: so none of its values is subnormal
        raise CodecError(f"factors in units of 2**{smallest}, too small for float32")
    factors = np.ldexp(left.astype(np.float64), (exponents - smallest)[:, None])
    partners = right.astype(np.float64)
    if float(np.abs(factors).max(axis=1) @ np.abs(partners).max(axis=1)) >= _EXACT:
        raise CodecError("factors so large that their sum is not exact")
    rows = max(1, _BLOCK // out.shape[1])
    for start in range(0, out.shape[0], rows):
        product = factors[:, start : start + rows].T @ partners
        out[start : start + rows] = to_float32(np.ldexp(product, smallest))


def to_float32(values: npt.NDArray[np.float64]) -> Vector:
    """Round each value once to float32; values beyond its range become its largest number."""
    largest = float(np.finfo(np.float32).max)
    return np.clip(values, -largest, largest).astype(np.float32)
