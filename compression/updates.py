"""What a decoder returns: a vector, held densely or as positions and values.

Neither kind has memory of its own to speak of, so a server can fold an update into an accumulator and drop it.
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
"""Bound of a fixed-point term. The sum, for which it leaves one bit of an int64, is the caller's to bound."""

_DENSE_A_CODED = 8
"""Elements that are unpacked and added in the time that an entropy decoder takes for one."""

_CHUNK = 1 << 16
"""Elements that are widened to float64 at a time, so that a large model needs no second copy of itself."""


@dataclass(frozen=True, eq=False)
class DenseUpdate:
    """An update with a value for every element.

    Attributes:
        values: shape (size,), float32, finite.
        rebuilding: work of rebuilding the values from a shorter code, as `work` counts it.
    """

    values: Vector
    rebuilding: int = 0

    @property
    def size(self) -> int:
        """Elements of the vector."""
        return self.values.size

    @property
    def work(self) -> int:
        """What it took; see `fedglm.compression.codec.Update`."""
        return self.size // _DENSE_A_CODED + self.rebuilding

    def to_dense(self) -> Vector:
        """A copy as a vector of shape (size,), float32."""
        return self.values.copy()

    def add_to(self, accumulator: Accumulator, weight: float) -> None:
        """Fold `weight * self` into `accumulator`; see `fedglm.compression.codec.Update`."""
        _check_accumulator(accumulator, self.size)
        if accumulator.dtype == np.int64:
            _check_terms(self, weight)
        for chunk in _chunks(self.size):
            accumulator[chunk] += _terms(self.values[chunk], weight, accumulator.dtype)

    def max_abs(self) -> float:
        """The largest magnitude."""
        return _max_abs(self.values)

    def norm(self) -> float:
        """The Euclidean norm, summed in float64."""
        return _norm(self.values)


@dataclass(frozen=True, eq=False)
class SparseUpdate:
    """An update that is zero but at some positions.

    Attributes:
        size: elements of the vector.
        positions: shape (k,), int64, strictly ascending, each below `size`.
        values: shape (k,), float32, finite.
    """

    size: int
    positions: Positions
    values: Vector

    @property
    def work(self) -> int:
        """What it took; see `fedglm.compression.codec.Update`."""
        return self.values.size

    def to_dense(self) -> Vector:
        """The vector of shape (size,), float32."""
        dense = np.zeros(self.size, np.float32)
        dense[self.positions] = self.values
        return dense

    def add_to(self, accumulator: Accumulator, weight: float) -> None:
        """Fold `weight * self` into `accumulator`; see `fedglm.compression.codec.Update`."""
        _check_accumulator(accumulator, self.size)
        if accumulator.dtype == np.int64:
            _check_terms(self, weight)
        if not add_at(accumulator, self.positions, _terms(self.values, weight, accumulator.dtype)):
            raise IndexError(f"an update with positions outside its {self.size} elements")

    def max_abs(self) -> float:
        """The largest magnitude, 0 when nothing was sent."""
        return _max_abs(self.values)

    def norm(self) -> float:
        """The Euclidean norm, summed in float64."""
        return _norm(self.values)


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, size)) for start in range(0, size, _CHUNK))


def _check_accumulator(accumulator: Accumulator, size: int) -> None:
    if accumulator.dtype not in (np.float32, np.float64, np.int64):
        raise TypeError(f"an accumulator is float32, float64 or int64 (fixed point), not {accumulator.dtype}")
    if accumulator.shape != (size,):
        raise ValueError(f"the accumulator has shape {accumulator.shape}, the update ({size},)")


def _check_terms(update: DenseUpdate | SparseUpdate, weight: float) -> None:
    """Before the first term is added, so that a refused update leaves the accumulator as it was."""
    largest = abs(weight) * update.max_abs()
    if not largest < MAX_TERM:  # so written, a NaN is refused too
        raise CodecError(f"a term of {largest:.3g} does not fit in the fixed-point sum; the limit is 2**62")


def _terms(values: Vector, weight: float, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if dtype == np.int64:
        terms = np.rint(values.astype(np.float64) * weight)
    else:
        terms = values.astype(dtype, copy=False) * dtype.type(weight)
    return terms.astype(dtype, copy=False)


def _max_abs(values: Vector) -> float:
    return max(float(values.max()), -float(values.min())) if values.size else 0.0


def _norm(values: Vector) -> float:
    squares = (float(np.square(values[chunk], dtype=np.float64).sum()) for chunk in _chunks(values.size))
    return math.sqrt(math.fsum(squares))
