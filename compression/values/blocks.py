"""Values in blocks of 1024 that share a scale, so that small values keep their precision beside large ones."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedglm.compression.vectors import Vector

BLOCK = 1024

_PART = 32
"""Number of blocks processed at a time, so that intermediate results stay in the processor's cache."""


def count(size: int) -> int:
    """Return the number of blocks of a vector of `size` elements; the last may be short."""
    return -(-size // BLOCK)


def split(size: int) -> Iterator[tuple[slice, slice]]:
    """Split a vector of `size` elements into runs of blocks; yield each run's slice of elements and slice of blocks."""
    for first in range(0, count(size), _PART):
        last = min(first + _PART, count(size))
        yield slice(first * BLOCK, min(last * BLOCK, size)), slice(first, last)


def block_maxima(values: Vector) -> Vector:
    """Return the largest magnitude of each block of `values`, which are not empty; shape (count,)."""
    maxima: Vector = np.maximum.reduceat(np.abs(values), np.arange(0, values.size, BLOCK))
    return maxima


def repeat_scales(scales: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Repeat each block's scale for each of its values, shape (size,)."""
    return np.repeat(scales, BLOCK)[:size]
