"""Decoded updates: a vector stored densely, or as positions and values.

A server adds an update to an accumulator and drops it, so neither kind keeps a second copy.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.compression.errors import CodecError
from fedglm.compression.kernels.scatter import add_at
from fedglm.compression.vectors import Positions, Vector

Accumulator: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64] | npt.NDArray[np.int64]

MAX_TERM = 2.0**62
"""Bound of a fixed-point term. It leaves one bit of an int64 for the sum, which the caller has to bound."""

_DENSE_PER_CODED = 8
"""Number of elements that are unpacked and added in the time that an entropy decoder takes for one."""

_CHUNK = 1 << 16
"""Number of elements that are widened to float64 at a time, so that a large model needs no second copy of itself."""


@dataclass(frozen=True, eq=False)
class DenseUpdate:
    """An update with a value for every element.

    Attributes:
        values: Shape (size,), float32, finite.
        rebuild_work: Cost of rebuilding the values from a shorter code, in the unit of `work`.
    """

    values: Vector
    rebuild_work: int = 0

    @property
    def size(self) -> int:
        """Number of elements of the vector."""
        return self.values.size

    @property
    def work(self) -> int:
        """Cost of decoding; see `fedglm.compression.codec.Update`."""
        return self.size // _DENSE_PER_CODED + self.rebuild_work

    def to_dense(self) -> Vector:
        """Return a copy of the vector, shape (size,), float32."""
        return self.values.copy()

    def add_to(self, accumulator: Accumulator, weight: float) -> None:
        """Add `weight * self` to `accumulator`; see `fedglm.compression.codec.Update`."""
        _check_accumulator(accumulator, self.size)
        if accumulator.dtype == np.int64:
            _check_terms(self, weight)
        for chunk in _split_chunks(self.size):
            accumulator[chunk] += _scale_terms(self.values[chunk], weight, accumulator.dtype)

    def max_abs(self) -> float:
        """Return the largest magnitude."""
        return _max_abs(self.values)

    def norm(self) -> float:
        """Return the Euclidean norm, summed in float64."""
        return _norm(self.values)


@dataclass(frozen=True, eq=False)
class SparseUpdate:
    """An update that is zero except at some positions.

    Attributes:
        size: Number of elements of the vector.
        positions: Shape (k,), int64, strictly ascending, each from 0 to below `size`.
        values: Shape (k,), float32, finite.
    """

    size: int
    positions: Positions
    values: Vector

    @property
    def work(self) -> int:
        """Cost of decoding; see `fedglm.compression.codec.Update`."""
        return self.values.size

    def to_dense(self) -> Vector:
        """Return the vector, shape (size,), float32."""
        dense = np.zeros(self.size, np.float32)
        dense[self.positions] = self.values
        return dense

    def add_to(self, accumulator: Accumulator, weight: float) -> None:
        """Add `weight * self` to `accumulator`; see `fedglm.compression.codec.Update`."""
        _check_accumulator(accumulator, self.size)
        if accumulator.dtype == np.int64:
            _check_terms(self, weight)
        if not add_at(accumulator, self.positions, _scale_terms(self.values, weight, accumulator.dtype)):
            raise IndexError(f"an update with positions outside its {self.size} elements")

    def max_abs(self) -> float:
        """Return the largest magnitude, 0 when nothing was sent."""
        return _max_abs(self.values)

    def norm(self) -> float:
        """Return the Euclidean norm, summed in float64."""
        return _norm(self.values)


def _split_chunks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def _check_accumulator(accumulator: Accumulator, size: int) -> None:
    if accumulator.dtype not in (np.float32, np.float64, np.int64):
        raise TypeError(f"an accumulator is float32, float64 or int64 (fixed point), not {accumulator.dtype}")
    if accumulator.shape != (size,):
        raise ValueError(f"the accumulator has shape {accumulator.shape}, the update ({size},)")


def _check_terms(update: DenseUpdate | SparseUpdate, weight: float) -> None:
    """Check the terms before the first is added, so that a refused update leaves the accumulator unchanged."""
    largest = abs(weight) * update.max_abs()
    if not largest < MAX_TERM:  # so written, a NaN is refused too
        raise CodecError(f"a term of {largest:.3g} does not fit in the fixed-point sum; the limit is 2**62")


def _scale_terms(values: Vector, weight: float, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype == np.int64:
        terms = np.rint(values.astype(np.float64) * weight)
    else:
        terms = values.astype(dtype, copy=False) * dtype.type(weight)
    return terms.astype(dtype, copy=False)


def _max_abs(values: Vector) -> float:
    return max(float(values.max()), -float(values.min())) if values.size else 0.0


def _norm(values: Vector) -> float:
    squares = (float(np.square(values[chunk], dtype=np.float64).sum()) for chunk in _split_chunks(values.size))
    return math.sqrt(math.fsum(squares))
