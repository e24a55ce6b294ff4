"""Which elements are worth their bits: exactly the largest magnitudes, at about the speed of memory.

A sample of the vector gives a threshold that somewhat more than the wanted number of elements reach. One pass over the
vector collects those, and only among them is the exact boundary sought. Where the sample was wrong (it is once in many
thousands of vectors, or where very many magnitudes are equal) further passes find the boundary in the whole vector, so
the result is the same and the time is still bounded.

Sampled thresholds: Lin et al., "Deep Gradient Compression", arXiv 1712.01887, section 3.1.
"""

import math
from dataclasses import dataclass

import numpy as np

from fedglm.compression.kernels import selection as kernels
from fedglm.compression.vectors import Positions, Vector, checked

_SAMPLES = (1 << 14, 1 << 16)
_PER_SAMPLE = 1 << 9
_DEVIATIONS = 4
"""How far the threshold keeps from the one that the sample says, in standard deviations."""


@dataclass(frozen=True, eq=False)
class Largest:
    """The largest elements of a vector.

    Attributes:
        positions: shape (k,), int64, strictly ascending.
        values: shape (k,), float32: what stands there, never 0.
    """

    positions: Positions
    values: Vector


def kept(density: float, size: int) -> int:
    """How many of `size` elements a density keeps: the nearest whole number, and at least one."""
    return max(1, round(density * size))


def largest(vector: Vector, count: int) -> Largest:
    """The `count` largest magnitudes; of equal ones those with the lower index.

    A zero is never worth a position, so a vector with fewer than `count` others gives just those.

    Args:
        vector: shape (n,), float32.
        count: from 1 to n.

    Raises:
        ValueError: no flat float32 vector, an empty one, or NaN or infinity (which and where).
    """
    vector = _of_right_shape(vector, "the update")
    threshold, room = _estimate(vector, vector[:0], np.float32(0), count)
    chosen = _room(room)
    found = kernels.collect(vector, np.int32(threshold), vector.size, chosen.positions, chosen.values)
    chosen = _exactly(vector, count, chosen, found, threshold)
    if not np.isfinite(chosen.values).all():  # the largest magnitude is among them, and infinity and NaN are larger
        checked(vector, "the update")
    return chosen


def largest_compensated(delta: Vector, residual: Vector, factor: np.float32, count: int, out: Vector) -> Largest:
    """Write `delta + residual * factor` to `out` and return its `count` largest magnitudes, as `largest` would.

    Args:
        delta: shape (n,), float32.
        residual: shape (n,), float32, finite, contiguous.
        factor: from 0 to 1.
        count: from 1 to n.
        out: shape (n,), float32, contiguous; it shares no memory with the others.

    Raises:
        ValueError: a delta of another shape or with NaN or infinity (which and where), or a sum that overflows. What
            `out` then holds is not defined.
    """
    delta = _of_right_shape(delta, "the delta", residual.size)
    if out.shape != residual.shape or out.dtype != np.float32 or not out.flags.carray:
        raise ValueError(f"the sum of {residual.size} elements needs a contiguous float32 vector of that size")
    threshold, room = _estimate(delta, residual, factor, count)
    chosen = _room(room)
    head = -out.ctypes.data % kernels.ALIGNMENT // out.itemsize
    found = kernels.compensate(delta, residual, factor, np.int32(threshold), head, out, chosen.positions, chosen.values)
    chosen = _exactly(out, count, chosen, found, threshold)
    if not np.isfinite(chosen.values).all():  # the largest magnitude is among them, and infinity and NaN are larger
        checked(delta, "the delta")
        checked(out, "the delta with its residual")
    return chosen


def _of_right_shape(vector: Vector, what: str, size: int | None = None) -> Vector:
    """`checked` without a pass over the values: the largest of them tell whether all are finite."""
    right = isinstance(vector, np.ndarray) and vector.dtype == np.float32 and vector.ndim == 1 and vector.size > 0
    if right and vector.flags.c_contiguous and vector.flags.aligned and size in (None, vector.size):
        return vector
    return checked(vector, what, size).copy()


def _estimate(delta: Vector, residual: Vector, factor: np.float32, count: int) -> tuple[int, int]:
    """The bits of a threshold that `count` elements or more should reach, and how many may do so."""
    size = delta.size
    taken = min(size, max(_SAMPLES[0], min(size // _PER_SAMPLE, _SAMPLES[1])))
    numbers = np.empty(taken, np.float32)
    kernels.sample(delta, residual, factor, numbers)
    expected = count * taken / size
    # The sample is the whole of a short vector, and has no deviation then.
    margin = 0.0 if taken == size else _DEVIATIONS * (1 + math.sqrt(expected))
    rank = min(taken, math.ceil(expected + margin))
    threshold, _ = kernels.nth_largest(numbers, rank)
    room = min(size, math.ceil((rank + margin) * size / taken))
    return max(threshold, 1), room  # no zeros


def _room(count: int) -> Largest:
    return Largest(np.empty(count, np.int64), np.empty(count, np.float32))


def _exactly(vector: Vector, count: int, candidates: Largest, found: int, threshold: int) -> Largest:
    """The `count` largest of `vector`, of which `found` reach `threshold`; as many as there is room for are here."""
    if found > candidates.positions.size or (found < count and threshold > 1):
        boundary, ties = kernels.nth_largest(vector, count)
        if boundary == 0:
            boundary, ties = 1, count
        candidates = _room(count)
        found = kernels.collect(vector, np.int32(boundary), ties, candidates.positions, candidates.values)
    positions, values = candidates.positions[:found], candidates.values[:found]
    if found > count:
        boundary, ties = kernels.nth_largest(values, count)
        found = kernels.keep(positions, values, np.int32(boundary), ties)
    return Largest(positions[:found], values[:found])
