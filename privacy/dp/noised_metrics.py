"""Means over a site's units, noised: what a site may tell of a model's loss and accuracy on its held-out data.

Each unit contributes one vector: its own means, each over the most it may be, and a one that counts it. The vector's
length is at most 1, so one Gaussian mechanism covers loss, accuracy and the number of units together; their quotients
are post-processing.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError


def noised_means(
    values: npt.ArrayLike,
    owners: npt.ArrayLike,
    bounds: Sequence[float],
    mechanism: Mechanism,
    noise: GaussianNoise,
) -> tuple[list[float], int]:
    """Means of K measures over units, and how many units there are; both are noised and may leave once charged.

    Args:
        values: (N, K) measures of each record; what is not finite counts as its bound.
        owners: (N,) int64, whose each record is: 0 to U - 1, each at least once. A unit counts by the mean of its
            records. N may be 0.
        bounds: K public numbers above 0; a unit's mean is cut to lie between 0 and its bound.
        mechanism: one step that looks at every unit, of clipping norm 1.
        noise: where it comes from.

    Returns:
        K means, each from 0 to its bound, and the count, at least 1.

    Raises:
        PrivacyError: the mechanism samples or takes more than one step, or a bound is not above 0.
    """
    if (mechanism.sampling_rate, mechanism.steps, mechanism.clipping_norm) != (1.0, 1, 1.0):
        raise PrivacyError("measures are noised by one step over every unit, of clipping norm 1")
    total = summed_units(values, owners, bounds)
    total = noise.add(total, mechanism.noise_std) / _scale(bounds)
    count = max(1.0, total[-1])
    shares = (total[:-1] / count).clip(0, 1)
    return [float(share * bound) for share, bound in zip(shares, bounds, strict=True)], round(count)


def summed_units(values: npt.ArrayLike, owners: npt.ArrayLike, bounds: Sequence[float]) -> npt.NDArray[np.float64]:
    """The sum that is noised: (K + 1,) float64, to which one unit adds a vector of length 1 at the most.

    Args and errors are those of `noised_means`.
    """
    if not bounds or not all(0 < bound < math.inf for bound in bounds):
        raise PrivacyError("each measure needs a finite public bound above 0")
    whose, records = np.asarray(owners, np.int64), np.bincount(np.asarray(owners, np.int64))
    shares = np.asarray(values, np.float64).reshape(-1, len(bounds)) / np.array(bounds, np.float64)
    shares = np.nan_to_num(shares, nan=1.0, posinf=1.0, neginf=1.0).clip(0, 1)
    means = [np.bincount(whose, weights=column) / np.maximum(records, 1) for column in shares.T]
    return np.array([*(mean.sum() for mean in means), records.size]) * _scale(bounds)


def _scale(bounds: Sequence[float]) -> float:
    """One over the length of K + 1 ones."""
    return 1.0 / math.sqrt(len(bounds) + 1)
