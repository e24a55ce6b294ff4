"""The empirical audit: right code passes it, near the truth; each seeded fault of the training fails it."""

import os

import pytest
import seeded_faults
import torch

from fedglm.client.audit_bench import Bench
from fedglm.client.audit_trials import run_trials
from fedglm.client.canary_audit import audited_mechanism, gradient_canaries, record_canaries
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.noise import GaussianNoise
from fedglm.simulations.nodes import build_stage
from fedglm.simulations.scenario import Scenario, scenario_text

NOISE = GaussianNoise()
MECHANISM = audited_mechanism(2.0, 1.0, "record", 1)


@pytest.fixture(scope="module")
def bench():
    """The model of `hospital`, and 32 records of its first site."""
    torch.set_num_threads(1)
    stage = build_stage(Scenario.from_toml(scenario_text("hospital")).to_toml())
    records = stage.data.sites[0].train.select(range(32))
    return Bench(stage.workbench.model, stage.data.task, records, stage.workbench.initial)


def wrong(bench):
    """Names of what the audit finds wrong."""
    found = [result.kind for result in [gradient_canaries(bench, MECHANISM, NOISE)] if result.contradicts]
    return found + [trial.name for trial in run_trials(bench, MECHANISM, NOISE) if not trial.passed]


def test_right_code_passes_and_its_bound_is_near_the_claim(bench):
    result = gradient_canaries(bench, MECHANISM, NOISE)
    assert result.claimed <= 2
    assert 0.4 <= result.bound / result.claimed < 1
    assert 0.7 <= result.estimate / result.claimed < 1.3
    assert not result.contradicts
    assert not result.doubts
    assert [trial for trial in run_trials(bench, MECHANISM, NOISE) if not trial.passed] == []


@pytest.mark.slow
def test_twenty_audits_of_right_code_raise_no_alarm(bench):
    runs = int(os.environ.get("FEDGLM_AUDITS", "20"))
    alarms = [found for found in (wrong(bench) for _ in range(runs)) if found]
    assert len(alarms) <= runs // 20, alarms


FAULTS = {
    "no_clip": "contribution of a record",
    "nan_let_through": "a broken record",
    "half_noise": "gradients",
    "noise_from_a_seed": "fresh noise",
    "noise_every_micro_batch": "noise, all drawn",
    "no_noise_on_an_empty_sample": "noise, nobody drawn",
    "batch_mean_loss": "independence of records",
    "shuffled_batches": "sampling",
    "clip_each_record": "contribution of a unit",
    "all_records_of_a_unit": "records of a unit",
    "divided_by_the_sample": "contribution of a record",
}


@pytest.mark.parametrize(("fault", "finder"), FAULTS.items())
def test_a_seeded_fault_fails_the_audit(bench, monkeypatch, fault, finder):
    getattr(seeded_faults, fault)(monkeypatch)
    if finder == "gradients":
        assert gradient_canaries(bench, MECHANISM, NOISE).contradicts
    else:
        (trial,) = run_trials(bench, MECHANISM, NOISE, only=finder)
        assert not trial.passed


def test_record_canaries_see_a_clipper_that_lets_through(bench, monkeypatch):
    right = record_canaries(bench, MECHANISM, NOISE, 100)
    assert not right.contradicts
    monkeypatch.setattr("fedglm.privacy.clipping.Clipper._coefficients", _sixty_times)
    broken = record_canaries(bench, MECHANISM, NOISE, 100)
    assert broken.contradicts or broken.doubts


def _sixty_times(_, squares):
    return (60 * squares**-0.5).float(), torch.ones(len(squares), dtype=torch.bool)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 2.5, float("nan")])
def test_a_claim_that_canaries_cannot_audit_is_refused(epsilon):
    with pytest.raises(PrivacyError, match="canaries audit a claim"):
        audited_mechanism(epsilon, 1.0, "record", 1)
