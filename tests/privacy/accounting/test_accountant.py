"""What is spent, held against `dp-accounting` on the same history, row by row."""

import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import GaussianAccountant, PRVAccountant

from fedglm.privacy.accounting import accountant
from fedglm.privacy.accounting.accountant import EpsilonBounds, choose_default_delta, compute_epsilon, is_within_budget
from fedglm.privacy.accounting.calibration import calibrate
from fedglm.privacy.dp.mechanism import Event
from fedglm.privacy.errors import PrivacyError


def peer(history, delta):
    """Google's accountant as it comes, row by row."""
    accountant = PLDAccountant()
    for event in history:
        accountant.compose(
            PoissonSampledDpEvent(event.sampling_rate, GaussianDpEvent(event.noise_multiplier)), event.steps
        )
    return accountant.get_epsilon(delta)


HISTORIES = {
    "one step": ([Event(1.0, 0.02, 1)], 1e-5),
    "one run": ([Event(1.9, 0.02, 500)], 1e-5),
    "everybody in each step": ([Event(5.0, 1.0, 100)], 1e-5),
    "two plans": ([Event(1.0, 0.02, 100), Event(1.5, 0.05, 200)], 1e-5),
    "rounds of three plans in turns": ([Event(s, q, 20) for s, q in [(1.5, 0.02), (2.0, 0.05), (3.0, 0.1)] * 4], 1e-6),
    "many steps": ([Event(1.5, 0.02, 20_000)], 1e-5),
    "much noise": ([Event(35.0, 0.025, 1846)], 2e-7),
    "hardly a sample": ([Event(1.0, 1e-4, 500)], 1e-5),
    "least delta": ([Event(1.0, 0.02, 500)], 1e-10),
    "greatest delta": ([Event(1.0, 0.5, 3)], 0.1),
    "metrics beside updates": ([Event(1.0, 0.02, 500), Event(20.0, 1.0, 1)], 1e-5),
}


@pytest.mark.parametrize(("history", "delta"), HISTORIES.values(), ids=list(HISTORIES))
def test_agrees_with_the_peer_and_is_never_below(history, delta):
    expected = peer(history, delta)
    bounds = compute_epsilon(history, delta)
    assert expected <= bounds.epsilon <= expected + 0.02
    assert bounds.epsilon == max(bounds.prv, bounds.pld)
    assert bounds.delta == delta
    assert abs(bounds.prv - bounds.pld) <= 0.02


@pytest.mark.parametrize(("history", "delta"), HISTORIES.values(), ids=list(HISTORIES))
def test_prv_is_opacus_own(history, delta):
    """Composed in one go, and the bound is that of the accountant as it comes."""
    opacus = PRVAccountant()
    merged = {}
    for event in history:
        pair = event.noise_multiplier, event.sampling_rate
        merged[pair] = merged.get(pair, 0) + event.steps
    opacus.history = [(*pair, steps) for pair, steps in merged.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = opacus.get_epsilon(delta)
    rounding = 1e-3 if delta < 1e-9 else 1e-5  # a Fourier transform's own shows in so small a delta
    assert compute_epsilon(history, delta).prv == pytest.approx(expected, abs=rounding)


@pytest.mark.parametrize(
    ("noise", "epsilon", "delta", "rate", "steps"),
    [
        (1.90, 1, 1e-5, 0.02, 500),
        (0.73, 8, 1e-4, 0.05, 200),
        pytest.param(0.97, 3, 1e-5, 0.02, 500, marks=pytest.mark.slow),
        pytest.param(0.66, 8, 1e-5, 0.02, 500, marks=pytest.mark.slow),
        pytest.param(2.48, 1, 1e-4, 0.05, 200, marks=pytest.mark.slow),
        pytest.param(1.17, 3, 1e-4, 0.05, 200, marks=pytest.mark.slow),
    ],
)
def test_known_noise_for_known_epsilons(noise, epsilon, delta, rate, steps):
    assert calibrate(epsilon, delta, rate, steps) == pytest.approx(noise, abs=0.015)
    assert compute_epsilon([Event(noise, rate, steps)], delta).epsilon == pytest.approx(epsilon, rel=0.02)


@pytest.mark.parametrize("units", [1, 2, 7, 9, 10, 11, 100, 333, 1000, 12_345, 10**8])
def test_the_default_delta_is_at_most_a_tenth_of_one_over_the_units(units):
    assert 0.05 / units < choose_default_delta(units) <= 0.1 / units


def test_a_thousand_rounds_cost_what_one_entry_of_as_many_steps_costs():
    rounds = [Event(1.5, 0.02, 5)] * 1000
    compute_epsilon([Event(1.5, 0.02, 1)], 1e-5)  # imports
    start = time.process_time()
    once = compute_epsilon([Event(1.5, 0.02, 5001)], 1e-5)
    middle = time.process_time()
    bounds = compute_epsilon([*rounds, Event(1.5, 0.02, 2)], 1e-5)
    end = time.process_time()
    assert bounds.epsilon == pytest.approx(once.epsilon, abs=1e-3)
    assert end - middle < 3 * (middle - start)
    assert compute_epsilon(rounds[::-1], 1e-5) == compute_epsilon(iter(rounds), 1e-5)


def test_rounds_add_up():
    """A new engine each round says the same epsilon each time; the truth grows."""
    event = Event(1.0, 0.1, 40)
    bounds = [compute_epsilon([event] * rounds, 1e-5).epsilon for rounds in (1, 2, 3)]
    assert bounds[0] + 1 < bounds[1] < bounds[2] - 0.5
    assert bounds[2] == pytest.approx(peer([Event(1.0, 0.1, 120)], 1e-5), abs=0.02)


def test_an_empty_history_spends_nothing():
    assert compute_epsilon([], 1e-5) == EpsilonBounds(0.0, 0.0, 0.0, 0.0, 1e-5)
    assert is_within_budget([], 1e-9, 1e-5)


@pytest.mark.parametrize("noise", [1e-300, 1e-3, 0.01, 0.05, 0.2, 1e300])
def test_hardly_any_noise_overflows_nothing(noise):
    bounds = compute_epsilon([Event(noise, 0.02, 10)], 1e-5)
    assert bounds.prv is bounds.pld is None
    assert bounds.epsilon == bounds.rdp > 50
    assert not is_within_budget([Event(noise, 0.02, 10)], 8.0, 1e-5)


@pytest.mark.parametrize("delta", [0.0, -1e-5, 9.9e-11, 0.11, 1.0, float("nan")])
def test_a_delta_out_of_bounds_is_refused(delta):
    for ask in (
        lambda: compute_epsilon([], delta),
        lambda: is_within_budget([], 1.0, delta),
        lambda: calibrate(1.0, delta, 0.1, 1),
    ):
        with pytest.raises(PrivacyError, match="delta"):
            ask()


def test_rdp_stands_beside_and_is_looser():
    bounds = compute_epsilon([Event(1.0, 0.02, 500)], 1e-5)
    assert bounds.prv < bounds.rdp < 1.3 * bounds.prv
    # At great noise the best order is far above Opacus' 63, which would say 0.1.
    assert compute_epsilon([Event(1000.0, 0.02, 1)], 1e-5).rdp < 0.01


def test_the_banned_accountant_says_less_than_is_spent():
    event = Event(1.0, 0.01, 1000)
    with pytest.warns(UserWarning, match="can underestimate"):
        banned = GaussianAccountant()
    banned.history = [(event.noise_multiplier, event.sampling_rate, event.steps)]
    assert banned.get_epsilon(1e-5) + 0.1 < compute_epsilon([event], 1e-5).epsilon


def test_no_warning_escapes():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compute_epsilon([Event(4.9, 1.0, 3), Event(0.7, 0.999, 1)], 1e-5)


def test_within_is_what_spent_says():
    for epsilon in np.linspace(0.5, 4.0, 15):
        for steps in (50, 400, 900):
            history = [Event(1.2, 0.02, steps)]
            assert is_within_budget(history, epsilon, 1e-5) == (compute_epsilon(history, 1e-5).epsilon <= epsilon)


def test_below_the_budget_the_slowest_accountant_is_not_asked(monkeypatch):
    """Each charge asks anew, for each one makes another history."""
    history = [Event(1.2, 0.0123, 450), Event(1.4, 0.0321, 450)]
    bounds = compute_epsilon(history, 1e-5)
    monkeypatch.setattr(accountant, "compute_prv_epsilon", None)
    assert bounds.rdp > bounds.epsilon + 0.1
    assert is_within_budget(history, bounds.epsilon + 0.05, 1e-5)
    with pytest.raises(TypeError):
        is_within_budget([*history, Event(1.2, 0.0123, 1)], bounds.epsilon, 1e-5)


# Calibration.


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps", "history"),
    [
        (3.0, 0.05, 200, []),
        pytest.param(3.0, 0.02, 200, [Event(1.9, 0.02, 300)], marks=pytest.mark.slow),
        (1.0, 1.0, 20, []),
        (0.1, 0.02, 500, []),
    ],
)
def test_the_least_noise_that_stays_within(epsilon, rate, steps, history):
    noise = calibrate(epsilon, 1e-5, rate, steps, history)
    assert compute_epsilon([*history, Event(noise, rate, steps)], 1e-5).epsilon <= epsilon
    less = noise - 0.001 * max(1, noise)
    assert compute_epsilon([*history, Event(less, rate, steps)], 1e-5).epsilon > epsilon
    assert round(noise, 3) == noise


def test_a_budget_that_is_spent_cannot_be_calibrated_for():
    history = [Event(1.0, 0.02, 500)]
    with pytest.raises(PrivacyError, match=r"the budget is spent: epsilon 2\.\d+ of 2 "):
        calibrate(2.0, 1e-5, 0.02, 500, history)
    left = compute_epsilon(history, 1e-5).epsilon + 1e-6
    with pytest.raises(PrivacyError, match="no noise lets 500 more steps"):
        calibrate(left, 1e-5, 1.0, 500, history)


def test_never_less_than_the_least_noise():
    assert calibrate(40.0, 1e-5, 1e-6, 1) == 0.1


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 51.0, float("nan"), float("inf")])
def test_an_epsilon_out_of_bounds_is_refused(epsilon):
    with pytest.raises(PrivacyError, match="epsilon"):
        calibrate(epsilon, 1e-5, 0.1, 10)


def test_it_is_imported_without_torch():
    code = "import sys, fedglm.privacy.ledger.ledger, fedglm.privacy.dp.sampling; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
