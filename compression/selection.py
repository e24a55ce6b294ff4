"""Which elements are worth their bits."""

import numpy as np

from fedglm.compression.vectors import Positions, Vector


def kept(density: float, size: int) -> int:
    """How many of `size` elements a density keeps: the nearest whole number, and at least one."""
    return max(1, round(density * size))


def largest(vector: Vector, count: int) -> Positions:
    """The positions of the `count` largest magnitudes, int64, ascending; of equal ones those with the lower index.

    A zero is never worth a position, so a vector with fewer than `count` others gives just those.

    Args:
        vector: shape (n,), float32, finite.
        count: from 1 to n.
    """
    magnitudes = np.abs(vector)
    threshold = np.partition(magnitudes, vector.size - count)[vector.size - count]
    if threshold == 0:
        return np.flatnonzero(magnitudes)
    chosen = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)
