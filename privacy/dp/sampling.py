"""Which units a step looks at: Poisson sampling, which the accounting counts on, and a bound on a unit's records.

Shuffled batches of one size are no substitute: accounted for as Poisson samples, they leak more than is said (Chua et
al. 2024, arXiv 2411.04205).
"""

import numpy as np
import numpy.typing as npt

from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.errors import PrivacyError


def poisson(noise: GaussianNoise, units: int, rate: float) -> npt.NDArray[np.int64]:
    """Each of `units` with probability `rate`, independently of the others and of all earlier samples.

    Returns:
        Numbers below `units`, ascending, int64; often none at all where `units * rate` is small. An empty sample is a
        step like any other: its noise is added and accounted for.

    Raises:
        PrivacyError: `rate` is not above 0 and at most 1, or `units` is negative.
    """
    if not 0 < rate <= 1:
        raise PrivacyError(f"a sampling rate is a probability above 0 and at most 1, not {rate!r}")
    # The draws are multiples of 2**-53: so a unit is drawn with no more than the probability that is charged for.
    return np.flatnonzero(noise.uniform(units) + 2.0**-53 <= rate).astype(np.int64)


def at_most(noise: GaussianNoise, records: npt.NDArray[np.int64], most: int) -> npt.NDArray[np.int64]:
    """The `records` of one unit, or `most` of them chosen anew and evenly where it has more; their order stays.

    Args:
        noise: Chooses.
        records: Indices of the unit's records, int64, shape (k,).
        most: Records of a unit that a step may look at, at least 1.

    Raises:
        PrivacyError: `most` is below 1.
    """
    if most < 1:
        raise PrivacyError(f"at least 1 record of a unit is looked at, not {most}")
    return records if records.size <= most else records[noise.choice(records.size, most)]
