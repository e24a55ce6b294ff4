"""Shares of gradients in an update: recovered even if the gradients are alike."""

import numpy as np
import pytest

from fedglm.audit.empirical.gradient_shares import GradientShares

COUNT, ROWS, WIDTH = 40, 300, 8


@pytest.fixture
def dice():
    return np.random.default_rng(7)


def alike(dice, common=5.0):
    """Gradients that all go the same way, but for a tenth of them."""
    own = dice.standard_normal((COUNT, ROWS * WIDTH))
    return (own + common * dice.standard_normal(ROWS * WIDTH)).astype(np.float32)


def test_shares_are_the_ones_that_an_update_was_made_with(dice):
    gradients, shares = alike(dice), dice.uniform(0, 2, COUNT)
    update = -(shares @ gradients).astype(np.float32)
    computed = GradientShares(gradients.copy(), WIDTH).compute(update)
    assert computed == pytest.approx(shares, abs=0.1)
    assert computed.dtype == np.float64


def test_members_stand_out_where_an_update_lies_along_all_gradients_alike(dice):
    gradients, members = alike(dice, common=30.0), np.arange(COUNT) < COUNT // 2
    update = -(members @ gradients).astype(np.float32)
    along = -(gradients @ update) / np.linalg.norm(gradients, axis=1)
    assert along[members].min() < along[~members].max()  # by the direction alone, some would be confused
    computed = GradientShares(gradients, WIDTH).compute(update)
    assert computed[members].min() > computed[~members].max() + 0.5


def test_a_small_row_counts_as_much_as_a_large_one(dice):
    """Two records differ in a row alone that is a thousandth of the others, which are off by a hundredth."""
    gradients = np.repeat(dice.standard_normal((1, ROWS, WIDTH)), 2, axis=0).astype(np.float32)
    gradients[0, 0] *= 1e-3
    gradients[1, 0] = -gradients[0, 0]
    update = -gradients[0] * (1 + 0.01 * dice.standard_normal((ROWS, WIDTH))).astype(np.float32)
    first, second = GradientShares(gradients.reshape(2, -1), WIDTH).compute(update.reshape(-1))
    assert first > 0.9
    assert abs(second) < 0.1


def test_rows_that_nobody_moves_and_records_that_move_nothing_have_no_share(dice):
    gradients = alike(dice, common=0).reshape(COUNT, ROWS, WIDTH)
    gradients[:, 3] = 0
    gradients[5] = 0
    update = -gradients.sum(axis=0)
    update[3] = 1e3
    computed = GradientShares(gradients.reshape(COUNT, -1), WIDTH).compute(update.reshape(-1))
    assert computed[5] == 0
    assert np.delete(computed, 5) == pytest.approx(1, abs=0.05)
    assert (GradientShares(np.zeros((3, 16), np.float32), 4).compute(np.ones(16, np.float32)) == 0).all()
