"""A site with little budget left: more noise for the whole run where that helps, the plan's until it ends where not."""

from dataclasses import replace

import pytest
from custodies import custody, run_plan
from plans import change_plan

from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.custody.site_log import Release
from fedglm.privacy.dp.mechanism import Mechanism, make_metrics_mechanism
from fedglm.privacy.errors import Refusal

DELTA = 1e-3
TURNS = 10
MECHANISM = Mechanism(
    sampling_rate=0.2, steps=4, clipping_norm=1.0, noise_multiplier=1.2, unit="record", records_per_unit=1
)
WHOLE = compute_epsilon([MECHANISM.event()] * TURNS, DELTA).epsilon
PLAN = run_plan("a" * 64, mechanism=MECHANISM, rounds=TURNS, turns=TURNS, local_steps=4, noise_at_most=2.4)


def site(folder, epsilon, before=0):
    """A site with a budget, some of it spent on an earlier run."""
    made = custody(folder / "site" / "custody", private=True, epsilon=epsilon)
    for number in range(before):
        made.charge(
            Release(
                made.make_charge(
                    "run-0", number, MECHANISM, "1" * 64, f"{number:064x}", purpose="update", attempt=f"{number:032x}"
                ),
                100,
            )
        )
    return made


def take_part(made, plan=PLAN, most=TURNS):
    """The noise of each round that the site takes part in, and whether it withdrew."""
    noises = []
    for number in range(most):
        mechanism = made.choose_mechanism(plan)
        assert replace(mechanism, noise_multiplier=MECHANISM.noise_multiplier) == MECHANISM
        charges = [
            made.make_charge(
                plan.run, number, mechanism, plan.sha256, f"a{number:063x}", purpose="update", attempt=f"a{number:031x}"
            )
        ]
        if plan.spec.noise.metrics is not None:
            told = f"b{number:063x}"
            charges.append(
                made.make_charge(
                    plan.run,
                    number,
                    plan.spec.noise.metrics,
                    plan.sha256,
                    told,
                    purpose="metrics",
                    attempt=f"a{number:031x}",
                )
            )
        try:
            made.charge(*(Release(charge, 100) for charge in charges))
        except Refusal:
            return noises, True
        noises.append(mechanism.noise_multiplier)
    return noises, False


def epsilon_of(made):
    return made.ledger.spending(made.policy.data_set, made.commitment).at(DELTA).epsilon


def test_a_site_with_enough_takes_the_plan_s_noise(tmp_path):
    assert take_part(site(tmp_path, WHOLE)) == ([1.2] * TURNS, False)


@pytest.mark.parametrize(
    "metrics", [pytest.param(None, marks=pytest.mark.slow), make_metrics_mechanism(MECHANISM, 12.0)]
)
def test_a_site_with_too_little_takes_as_much_as_lasts_and_keeps_to_it(tmp_path, metrics):
    made = site(tmp_path, 1.1 * WHOLE, before=6)
    noises, withdrew = take_part(made, change_plan(PLAN, metrics=metrics))
    assert len(set(noises)) == 1, "one noise for the whole run, so that its rows stay one entry to the accountants"
    assert (len(noises), withdrew) == (TURNS, False)
    assert 1.2 < noises[0] <= 2.4
    assert 1.1 * WHOLE - 0.05 < epsilon_of(made) <= 1.1 * WHOLE  # no more noise than is needed


def test_a_site_that_would_need_too_much_takes_part_until_its_budget_ends(tmp_path):
    made = site(tmp_path, WHOLE / 3)
    noises, withdrew = take_part(made)
    assert withdrew
    assert 0 < len(noises) < TURNS
    assert set(noises) == {1.2}
    assert epsilon_of(made) <= WHOLE / 3


@pytest.mark.slow
def test_what_another_run_spends_meanwhile_is_made_up_for(tmp_path):
    made = site(tmp_path, 1.1 * WHOLE)
    first, _ = take_part(made, most=4)
    for number in range(2):
        made.charge(
            Release(
                made.make_charge(
                    "run-0", number, MECHANISM, "1" * 64, f"c{number:063x}", purpose="update", attempt=f"c{number:031x}"
                ),
                100,
            )
        )
    assert first == [1.2] * 4
    assert made.choose_mechanism(PLAN).noise_multiplier > 1.2


def test_data_that_left_without_noise_end_it_all(tmp_path):
    made = site(tmp_path, WHOLE)
    made.charge(Release(made.make_charge("run-0", 1, None, "1" * 64, "d" * 64, purpose="update"), 100))
    assert made.choose_mechanism(PLAN) == MECHANISM
    assert take_part(made) == ([], True)
