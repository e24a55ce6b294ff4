"""The mean of a round's updates, folded in as they arrive, with the same bits in whatever order they come.

Float addition depends on its order; integer addition does not. Each value is multiplied by its node's weight and by a
power of two, rounded to an integer, and added to an int64 vector. That vector is all that the mean needs, for ten nodes
or ten thousand.
"""

import math
import statistics
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from fedglm.compression.codec import CodecError, Update

FRACTION_BITS = 40
"""Binary places kept of each value: a resolution of 9e-13, and room for sums up to 4 million."""

_ROOM = 2.0**62


class FixedPointMean:
    """A weighted mean of coded updates in fixed point.

    Args:
        size: Number of federated parameters.
        terms: Greatest number of updates that will be added; it bounds each so that the sum cannot overflow.
    """

    def __init__(self, size: int, terms: int) -> None:
        self._sum = np.zeros(size, dtype=np.int64)
        self._weight = 0.0
        self._limit = _ROOM / (2.0**FRACTION_BITS * terms)

    @property
    def total(self) -> npt.NDArray[np.int64]:
        """The weighted sum so far, in units of 2**-FRACTION_BITS; shape (size,)."""
        return self._sum

    @property
    def weight(self) -> float:
        """The sum of the weights so far."""
        return self._weight

    def check(self, update: Update, weight: float) -> None:
        """Whether an update fits, before anything is done with it.

        Args:
            update: Decoded update of `size` values.
            weight: The node's public weight, in (0, 1].

        Raises:
            CodecError: The update is of another size, not finite, or so large that the sum could overflow.
        """
        if update.size != len(self._sum):
            raise CodecError(f"the update has {update.size} values, the model {len(self._sum)}")
        greatest = update.max_abs()
        if not greatest * weight <= self._limit:  # also true for NaN
            raise CodecError(f"a value of {greatest:g} is not finite or beyond the limit of {self._limit / weight:g}")

    def add(self, update: Update, weight: float) -> None:
        """Fold one update in.

        Args:
            update: Decoded update of `size` values.
            weight: The node's public weight, in (0, 1].

        Raises:
            CodecError: See `check`; the sum is then as it was.
        """
        self.check(update, weight)
        update.add_to(self._sum, weight * 2.0**FRACTION_BITS)
        self._weight += weight

    def take_back(self, update: Update, weight: float) -> None:
        """Let an update that was added count for so much less."""
        update.add_to(self._sum, -weight * 2.0**FRACTION_BITS)
        self._weight -= weight

    def mean(self) -> np.ndarray:
        """The weighted mean over all that were added, float32.

        Weights are multiples of 2**-20 (see `public_weights`), so their sum is exact in any order too.
        """
        return (self._sum / (2.0**FRACTION_BITS * self._weight)).astype(np.float32)


def public_weights(examples: Mapping[str, float], cap: float) -> dict[str, float]:
    """Weights in (0, 1] from declared counts, with at most a ratio of `cap` between two.

    Counts count from the median divided by the root of `cap` to the median times it, so that one false count moves
    nobody else's weight: by the smallest or the largest, a site that declares 1 would make all others alike.

    They are multiples of 2**-20, so that sums of weights are exact in any order; rounded up, so that the cap holds.

    Args:
        examples: Counts by name, each at least 1.
        cap: At least 1.
    """
    middle, reach = statistics.median(examples.values()), math.sqrt(cap)
    capped = {name: min(max(count, middle / reach), middle * reach) for name, count in examples.items()}
    greatest = max(capped.values())
    return {name: math.ceil(count / greatest * 2**20) / 2**20 for name, count in capped.items()}
