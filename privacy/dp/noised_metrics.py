"""Noised means over a site's units: a model's loss and accuracy on held-out data, in a form that a site may release.

Each unit contributes one vector: its own means, each divided by its bound, and a one that counts it. The vector is
scaled to a length of at most 1, so one Gaussian mechanism covers loss, accuracy and the number of units together; their
quotients are post-processing.
"""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError


def compute_noised_means(
    values: npt.ArrayLike,
    owners: npt.ArrayLike,
    bounds: Sequence[float],
    mechanism: Mechanism,
    noise: GaussianNoise,
) -> tuple[list[float], int]:
    """Compute the means of K metrics over units, and the number of units; both noised, to be released once charged.

    Args:
        values: Metrics of each record, (N, K); values that are not finite count as their bound.
        owners: Unit of each record, (N,), int64: 0 to U - 1, each at least once. A unit's value is the mean over its
            records. N may be 0.
        bounds: K public numbers above 0; a record's metric is clipped to between 0 and its bound.
        mechanism: A mechanism of one step over every unit, of clipping norm 1.
        noise: Source of the noise.

    Returns:
        K means, each from 0 to its bound, and the count, at least 1.

    Raises:
        PrivacyError: The mechanism samples or has more than one step, or a bound is not above 0.
    """
    if (mechanism.sampling_rate, mechanism.steps, mechanism.clipping_norm) != (1.0, 1, 1.0):
        raise PrivacyError("measures are noised by one step over every unit, of clipping norm 1")
    total = sum_units(values, owners, bounds)
    total = noise.add(total, mechanism.noise_std) / _compute_scale(bounds)
    count = max(1.0, total[-1])
    shares = (total[:-1] / count).clip(0, 1)
    return [float(share * bound) for share, bound in zip(shares, bounds, strict=True)], round(count)


def sum_units(values: npt.ArrayLike, owners: npt.ArrayLike, bounds: Sequence[float]) -> npt.NDArray[np.float64]:
    """Compute the sum that is noised, (K + 1,), float64, to which each unit adds a vector of length at most 1.

    Arguments and errors are those of `compute_noised_means`.
    """
    if not bounds or not all(0 < bound < math.inf for bound in bounds):
        raise PrivacyError("each measure needs a finite public bound above 0")
    units = np.asarray(owners, np.int64)
    records = np.bincount(units)
    shares = np.asarray(values, np.float64).reshape(-1, len(bounds)) / np.array(bounds, np.float64)
    shares = np.nan_to_num(shares, nan=1.0, posinf=1.0, neginf=1.0).clip(0, 1)
    means = [np.bincount(units, weights=column) / np.maximum(records, 1) for column in shares.T]
    return np.array([*(mean.sum() for mean in means), records.size]) * _compute_scale(bounds)


def _compute_scale(bounds: Sequence[float]) -> float:
    """Return one over the length of a vector of K + 1 ones."""
    return 1.0 / math.sqrt(len(bounds) + 1)
