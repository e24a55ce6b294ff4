"""Choice of the units of a step: Poisson sampling, which the accounting assumes, and a bound on a unit's records.

Shuffled batches of one size are no substitute: accounted for as Poisson samples, they leak more than the accountant
reports (Chua et al. 2024, arXiv 2411.04205).
"""

import numpy as np
import numpy.typing as npt

from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError


def sample_poisson(noise: GaussianNoise, units: int, rate: float) -> npt.NDArray[np.int64]:
    """Draw each of `units` with probability `rate`, independently of the others and of all earlier samples.

    Args:
        noise: Source of the randomness.
        units: Number of units.
        rate: Sampling rate, above 0 and at most 1.

    Returns:
        Numbers below `units`, ascending, int64; often none at all where `units * rate` is small. An empty sample is a
        step like any other: its noise is added and accounted for.

    Raises:
        PrivacyError: `rate` is not above 0 and at most 1, or `units` is negative.
    """
    if not 0 < rate <= 1:
        raise PrivacyError(f"a sampling rate is a probability above 0 and at most 1, not {rate!r}")
    # The draws are multiples of 2**-53: so a unit is drawn with at most the probability that is charged for.
    return np.flatnonzero(noise.uniform(units) + 2.0**-53 <= rate).astype(np.int64)


def choose_records(noise: GaussianNoise, records: npt.NDArray[np.int64], max_records: int) -> npt.NDArray[np.int64]:
    """Choose at most `max_records` of a unit's records, uniformly and anew in each call; their order is kept.

    Args:
        noise: Source of the randomness.
        records: Indices of the unit's records, (k,), int64.
        max_records: Maximum number of a unit's records in a step, at least 1.

    Raises:
        PrivacyError: `max_records` is below 1.
    """
    if max_records < 1:
        raise PrivacyError(f"at least 1 record of a unit is looked at, not {max_records}")
    return records if records.size <= max_records else records[noise.choice(records.size, max_records)]
