"""What a site is told of its budget, where its policy says at which delta and where it does not."""

import math

import pytest
from ledgers import DELTA, budget_for, charge, epsilon_of

from fedglm.privacy.custody.budget_state import read_budget
from fedglm.privacy.custody.store import LEDGER
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.policy.policy import Policy


def policy(**settings):
    return Policy(data_set="notes", servers=("0" * 64,), **settings)


@pytest.fixture
def ledger(tmp_path):
    return Ledger.create(tmp_path / LEDGER)


def test_nothing_released_is_nothing_spent(tmp_path):
    Ledger.create(tmp_path / LEDGER)
    assert read_budget(tmp_path, policy()).spent == 0
    found = read_budget(tmp_path, policy(epsilon=8.0, delta=DELTA))
    assert (found.spent, found.left, found.without_noise) == (0, 8.0, False)


def test_what_was_released_with_noise_is_told_at_the_policy_s_delta_alone(tmp_path, ledger):
    ledger.charge(charge(1), budget_for(3))
    ledger.charge(charge(2), budget_for(3))
    found = read_budget(tmp_path, policy(epsilon=8.0, delta=DELTA))
    assert found.spent == pytest.approx(epsilon_of(2))
    assert found.left == pytest.approx(8.0 - epsilon_of(2))
    untold = read_budget(tmp_path, policy())
    assert (untold.spent, untold.left, untold.without_noise) == (None, None, False)


@pytest.mark.parametrize("settings", [{}, {"epsilon": 8.0, "delta": DELTA}])
def test_a_release_without_noise_leaves_no_budget_whatever_the_policy_says(tmp_path, ledger, settings):
    ledger.charge(charge(1, mechanism=None), None)
    found = read_budget(tmp_path, policy(**settings))
    assert (found.spent, found.without_noise) == (math.inf, True)
