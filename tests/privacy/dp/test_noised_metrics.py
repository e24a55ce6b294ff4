"""Measures of a site's held-out data: what one unit can change, that the noise is right, and that it helps to ask."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.privacy.dp.mechanism import Mechanism, make_metrics_mechanism
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.dp.noised_metrics import compute_noised_means, sum_units
from fedglm.privacy.errors import PrivacyError

TRAINING = Mechanism(
    sampling_rate=0.1, steps=5, clipping_norm=0.3, noise_multiplier=1.0, unit="patient", records_per_unit=3
)
ANYTHING = st.floats(width=32, allow_nan=True, allow_infinity=True)


def how(noise_multiplier=2.0):
    return make_metrics_mechanism(TRAINING, noise_multiplier)


@given(
    rest=st.lists(st.tuples(ANYTHING, ANYTHING), max_size=6),
    mine=st.lists(st.tuples(ANYTHING, ANYTHING), min_size=1, max_size=3),
    bounds=st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)),
)
def test_a_unit_moves_the_sum_by_no_more_than_one(rest, mine, bounds):
    without = sum_units(rest, np.arange(len(rest)), bounds)
    whose = [*range(len(rest)), *[len(rest)] * len(mine)]
    moved = sum_units([*rest, *mine], whose, bounds) - without
    assert np.isfinite(without).all()
    assert np.linalg.norm(moved) <= 1 + 1e-12


def test_a_unit_of_many_records_counts_once():
    total = sum_units([[2.0], [4.0], [1.0]], [0, 0, 1], (8.0,)) * math.sqrt(2)
    assert total == pytest.approx([(2 + 4) / 2 / 8 + 1 / 8, 2])


def test_the_mechanism_of_measures_looks_at_each_unit_once_in_the_units_of_training():
    event = how(3.0).event()
    assert (event.sampling_rate, event.steps, event.noise_multiplier) == (1.0, 1, 3.0)
    assert (how().unit, how().records_per_unit, how().clipping_norm) == ("patient", 3, 1.0)


@pytest.mark.parametrize(("told", "right"), [(2.0, True), (1.7, False), (2.3, False)])
def test_the_noise_has_the_size_that_is_charged(told, right):
    """2,000 releases of the number of units tell the right noise from a little more or less."""
    noise, values = GaussianNoise(), np.zeros((500, 1))
    counts = [compute_noised_means(values, np.arange(500), (1.0,), how(2.0), noise)[1] for _ in range(2000)]
    expected = told * math.sqrt(2)
    spread = np.std(counts) / expected
    assert bool(abs(spread - 1) < 5 / math.sqrt(2 * 2000)) is right
    assert abs(np.mean(counts) - 500) < 5 * np.std(counts) / math.sqrt(2000) + 0.5


def test_many_units_give_useful_means():
    noise = GaussianNoise()
    values = np.tile([[1.5, 1.0], [0.5, 0.0]], (1000, 1))
    (loss, accuracy), count = compute_noised_means(values, np.arange(2000), (4.0, 1.0), how(2.0), noise)
    assert loss == pytest.approx(1.0, abs=0.1)
    assert accuracy == pytest.approx(0.5, abs=0.03)
    assert count == pytest.approx(2000, abs=30)


def test_nothing_to_measure_is_told_like_everything_else():
    """A site's lack of held-out data shows in no error, and its measures stay within their bounds."""
    for _ in range(50):
        (loss,), count = compute_noised_means(np.zeros((0, 1)), [], (4.0,), how(2.0), GaussianNoise())
        assert 0 <= loss <= 4
        assert count >= 1


@pytest.mark.parametrize(
    ("mechanism", "bounds"), [(TRAINING, (1.0,)), (how(), ()), (how(), (0.0,)), (how(), (math.inf,))]
)
def test_what_would_make_the_charge_wrong_is_refused(mechanism, bounds):
    with pytest.raises(PrivacyError):
        compute_noised_means(np.zeros((1, len(bounds))), [0], bounds, mechanism, GaussianNoise())
