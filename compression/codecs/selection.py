"""Exact selection of the largest magnitudes, at about the speed of memory.

A sample of the vector gives a threshold that somewhat more than the wanted number of elements reach. One pass over the
vector collects those, and the exact boundary is searched among them alone. Where the sample was wrong (once in many
thousands of vectors, or where very many magnitudes are equal) further passes search the whole vector, so the result is
the same and the time is still bounded.

Sampled thresholds: Lin et al., "Deep Gradient Compression", arXiv 1712.01887, section 3.1.
"""

import math
from dataclasses import dataclass

import numpy as np

from fedglm.compression.kernels import selection as kernels
from fedglm.compression.vectors import Positions, Vector, check_vector

_SAMPLES = (1 << 14, 1 << 16)
_PER_SAMPLE = 1 << 9
_DEVIATIONS = 4
"""Safety margin of the threshold below the sample's estimate, in standard deviations."""


@dataclass(frozen=True, eq=False)
class Largest:
    """The largest elements of a vector.

    Attributes:
        positions: Shape (k,), int64, strictly ascending.
        values: The elements at these positions, shape (k,), float32, never 0.
    """

    positions: Positions
    values: Vector


def count_kept(density: float, size: int) -> int:
    """Return how many of `size` elements a density keeps: the nearest integer, and at least one."""
    return max(1, round(density * size))


def select_largest(vector: Vector, count: int) -> Largest:
    """Select the `count` largest magnitudes; of equal ones those with the lower index.

    Zeros are never selected, so a vector with fewer than `count` other elements gives fewer.

    Args:
        vector: Shape (n,), float32.
        count: From 1 to n.

    Raises:
        ValueError: The vector is not flat and float32, is empty, or holds NaN or infinity; the message gives the value
            and its position.
    """
    vector = _check_shape(vector, "the update")
    threshold, room = _estimate_threshold(vector, vector[:0], np.float32(0), count)
    chosen = _allocate(room)
    reached = kernels.collect(vector, np.int32(threshold), vector.size, chosen.positions, chosen.values)
    chosen = _refine(vector, count, chosen, reached, threshold)
    if not np.isfinite(chosen.values).all():  # the largest magnitude is among them, and infinity and NaN are larger
        check_vector(vector, "the update")
    return chosen


def select_largest_compensated(delta: Vector, residual: Vector, factor: np.float32, count: int, out: Vector) -> Largest:
    """Write `delta + residual * factor` to `out` and return its `count` largest magnitudes, as `select_largest` would.

    Args:
        delta: Shape (n,), float32.
        residual: Shape (n,), float32, finite, contiguous.
        factor: Factor on the residual, from 0 to 1.
        count: From 1 to n.
        out: Shape (n,), float32, contiguous; it shares no memory with the others.

    Raises:
        ValueError: The delta has another shape or holds NaN or infinity (the message gives the value and its
            position), or the sum overflows. The content of `out` is then undefined.
    """
    delta = _check_shape(delta, "the delta", residual.size)
    if out.shape != residual.shape or out.dtype != np.float32 or not out.flags.carray:
        raise ValueError(f"the sum of {residual.size} elements needs a contiguous float32 vector of that size")
    threshold, room = _estimate_threshold(delta, residual, factor, count)
    chosen = _allocate(room)
    head = -out.ctypes.data % kernels.ALIGNMENT // out.itemsize
    reached = kernels.compensate(
        delta, residual, factor, np.int32(threshold), head, out, chosen.positions, chosen.values
    )
    chosen = _refine(out, count, chosen, reached, threshold)
    if not np.isfinite(chosen.values).all():  # the largest magnitude is among them, and infinity and NaN are larger
        check_vector(delta, "the delta")
        check_vector(out, "the delta with its residual")
    return chosen


def _check_shape(vector: Vector, what: str, size: int | None = None) -> Vector:
    """Check a vector as `check_vector` does, but not its values: the largest of them show whether all are finite."""
    flat = isinstance(vector, np.ndarray) and vector.dtype == np.float32 and vector.ndim == 1 and vector.size > 0
    if flat and vector.flags.c_contiguous and vector.flags.aligned and size in (None, vector.size):
        return vector
    return check_vector(vector, what, size).copy()


def _estimate_threshold(delta: Vector, residual: Vector, factor: np.float32, count: int) -> tuple[int, int]:
    """Estimate a threshold that `count` or more elements reach; return its bits, and the room for those elements."""
    size = delta.size
    taken = min(size, max(_SAMPLES[0], min(size // _PER_SAMPLE, _SAMPLES[1])))
    numbers = np.empty(taken, np.float32)
    kernels.sample(delta, residual, factor, numbers)
    expected = count * taken / size
    # A short vector is its own sample, without deviation.
    margin = 0.0 if taken == size else _DEVIATIONS * (1 + math.sqrt(expected))
    rank = min(taken, math.ceil(expected + margin))
    threshold, _ = kernels.nth_largest(numbers, rank)
    room = min(size, math.ceil((rank + margin) * size / taken))
    return max(threshold, 1), room  # no zeros


def _allocate(count: int) -> Largest:
    return Largest(np.empty(count, np.int64), np.empty(count, np.float32))


def _refine(vector: Vector, count: int, candidates: Largest, reached: int, threshold: int) -> Largest:
    """Select exactly the `count` largest of `vector`, from the candidates where they suffice.

    Args:
        vector: Shape (n,), float32.
        count: From 1 to n.
        candidates: Elements that reach `threshold`, as many as there was room for.
        reached: Number of elements of `vector` that reach `threshold`.
        threshold: Bits of a magnitude.
    """
    if reached > candidates.positions.size or (reached < count and threshold > 1):
        boundary, ties = kernels.nth_largest(vector, count)
        if boundary == 0:
            boundary, ties = 1, count
        candidates = _allocate(count)
        reached = kernels.collect(vector, np.int32(boundary), ties, candidates.positions, candidates.values)
    positions, values = candidates.positions[:reached], candidates.values[:reached]
    if reached > count:
        boundary, ties = kernels.nth_largest(values, count)
        reached = kernels.keep(positions, values, np.int32(boundary), ties)
    return Largest(positions[:reached], values[:reached])
