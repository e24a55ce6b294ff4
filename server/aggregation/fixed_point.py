"""The mean of a round's updates, summed as they arrive, with the same bits in any order.

Float addition depends on the order; integer addition does not. Each value is multiplied by its node's weight and by a
power of two, rounded to an integer, and added to an int64 vector. That vector is all the memory that the mean needs,
for ten nodes or ten thousand.
"""

import math
import statistics
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedglm.compression.codec import CodecError, Update

FRACTION_BITS = 40
"""Fractional bits of the sum: a resolution of 9e-13, and a range up to 4 million."""

_MAX_SUM = 2.0**62


class FixedPointMean:
    """A weighted mean of coded updates in fixed point.

    Args:
        size: Number of federated parameters.
        terms: Maximum number of updates that will be added; it bounds each so that the sum cannot overflow.
    """

    def __init__(self, size: int, terms: int) -> None:
        self._sum = np.zeros(size, dtype=np.int64)
        self._weight = 0.0
        self._limit = _MAX_SUM / (2.0**FRACTION_BITS * terms)

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """The weighted sum so far, in units of 2**-FRACTION_BITS; shape (size,)."""
        return self._sum

    @property
    def weight(self) -> float:
        """The sum of the weights so far."""
        return self._weight

    def check(self, update: Update, weight: float) -> None:
        """Check that an update can be added; nothing is changed.

        Args:
            update: Decoded update of `size` values.
            weight: The node's public weight, in (0, 1].

        Raises:
            CodecError: The update has another size, is not finite, or is so large that the sum could overflow.
        """
        if update.size != len(self._sum):
            raise CodecError(f"the update has {update.size} values, the model {len(self._sum)}")
        max_abs = update.max_abs()
        if not max_abs * weight <= self._limit:  # also true for NaN
            raise CodecError(f"a value of {max_abs:g} is not finite or beyond the limit of {self._limit / weight:g}")

    def add(self, update: Update, weight: float) -> None:
        """Add one update.

        Args:
            update: Decoded update of `size` values.
            weight: The node's public weight, in (0, 1].

        Raises:
            CodecError: As by `check`; the sum is unchanged.
        """
        self.check(update, weight)
        update.add_to(self._sum, weight * 2.0**FRACTION_BITS)
        self._weight += weight

    def subtract(self, update: Update, weight: float) -> None:
        """Reduce the weight of an update that was added.

        Args:
            update: Decoded update, as it was added.
            weight: Part of its weight to remove.
        """
        update.add_to(self._sum, -weight * 2.0**FRACTION_BITS)
        self._weight -= weight

    def mean(self) -> np.ndarray:
        """Return the weighted mean of all added updates, shape (size,), float32.

        Weights are multiples of 2**-20 (see `compute_public_weights`), so their sum is exact in any order too.
        """
        return (self._sum / (2.0**FRACTION_BITS * self._weight)).astype(np.float32)


def compute_public_weights(examples: Mapping[str, float], cap: float) -> dict[str, float]:
    """Compute weights in (0, 1] from declared counts, with a ratio of at most `cap` between any two.

    Counts are clamped between the median divided by the square root of `cap` and the median times it, so that one false
    count does not change other weights: relative to the smallest or the largest count, a site that declares 1 would
    make all others equal.

    Weights are multiples of 2**-20, so that their sums are exact in any order, and rounded up, so that the cap holds.

    Args:
        examples: Declared number of examples by name of the node, each at least 1; not empty.
        cap: Maximum ratio of two weights, at least 1.

    Returns:
        Weights by name of the node.
    """
    center, factor = statistics.median(examples.values()), math.sqrt(cap)
    capped = {name: min(max(count, center / factor), center * factor) for name, count in examples.items()}
    largest = max(capped.values())
    return {name: math.ceil(count / largest * 2**20) / 2**20 for name, count in capped.items()}
