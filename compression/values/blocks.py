"""Values in blocks of 1024 that share a scale, so that small values keep their precision beside large ones."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from fedglm.compression.vectors import Vector

BLOCK = 1024

_PART = 32
"""Blocks at a time: what is computed on the way to the code then stays in the processor's cache."""


def count(size: int) -> int:
    """Blocks of a vector of `size` elements; the last may be short."""
    return -(-size // BLOCK)


def parts(size: int) -> Iterator[tuple[slice, slice]]:
    """Cut a vector of `size` elements into runs of whole blocks: the elements of each, and its blocks."""
    for first in range(0, count(size), _PART):
        last = min(first + _PART, count(size))
        yield slice(first * BLOCK, min(last * BLOCK, size)), slice(first, last)


def peaks(values: Vector) -> Vector:
    """The largest magnitude of each block of `values`, which are not empty; shape (count,)."""
    peaks: Vector = np.maximum.reduceat(np.abs(values), np.arange(0, values.size, BLOCK))
    return peaks


def spread(scales: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Each block's scale beside each of its values, shape (size,)."""
    return np.repeat(scales, BLOCK)[:size]
