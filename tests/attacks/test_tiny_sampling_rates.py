"""A plan's sampling rate may be as small as a float: no unit is drawn more often than the accountant counts."""

from fractions import Fraction

import numpy as np
import pytest

from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.dp.sampling import sample_poisson


class Draws(GaussianNoise):
    """The smallest values that a draw can have, each of probability 2**-53."""

    def uniform(self, size):
        return np.arange(size) * 2.0**-53


@pytest.mark.parametrize("rate", [5e-324, 1e-300, 1e-17, 1.5 * 2.0**-53, 7.25 * 2.0**-53, 8 * 2.0**-53])
def test_no_unit_is_drawn_with_more_than_the_rate(rate):
    drawn = len(sample_poisson(Draws(), 100, rate))
    assert Fraction(drawn, 2**53) <= Fraction(rate) < Fraction(drawn + 1, 2**53)
