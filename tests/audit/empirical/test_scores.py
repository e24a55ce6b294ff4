"""Scores of attacks: areas under the curve, and how often their intervals cover the truth."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedglm.audit.empirical.scores import Auc, average_auc, compute_auc, compute_likelihood_ratios
from fedglm.privacy.errors import PrivacyError


@pytest.mark.parametrize("seed", range(5))
def test_the_area_is_the_usual_one(seed):
    dice = np.random.default_rng(seed)
    truth = dice.random(80) < 0.4
    scores = np.round(dice.normal(size=80) + truth, 1)  # with ties
    assert compute_auc(scores, truth).value == pytest.approx(roc_auc_score(truth, scores))


def test_the_interval_covers_the_truth_as_often_as_it_states():
    """Normal scores one deviation apart have an area of Phi(1 / sqrt 2) = 0.7602."""
    covered = 0
    for seed in range(400):
        dice = np.random.default_rng(seed)
        truth = np.arange(120) < 60
        area = compute_auc(dice.normal(size=120) + truth, truth)
        covered += area.low <= 0.7602 <= area.high
    assert 0.91 <= covered / 400 <= 0.985


def test_a_sure_attack_and_a_blind_one():
    truth = np.arange(20) < 10
    assert compute_auc(truth.astype(float), truth) == Auc(1.0, 1.0, 1.0)
    assert compute_auc(np.zeros(20), truth).value == 0.5


def test_the_mean_of_sites_is_surer_than_one():
    mean = average_auc([Auc(0.6, 0.5, 0.7), Auc(0.7, 0.6, 0.8)])
    assert mean.value == pytest.approx(0.65)
    assert mean.high - mean.value == pytest.approx(0.1 / 2**0.5)


@pytest.mark.parametrize(
    ("scores", "truth"),
    [([1.0, 2.0], [True, False]), ([1.0, np.nan, 3.0, 4.0], [True, True, False, False]), ([1.0] * 4, [1, 0, 1, 0])],
)
def test_what_is_no_attack_is_refused(scores, truth):
    with pytest.raises(PrivacyError):
        compute_auc(scores, np.array(truth))


def test_shadows_tell_members_that_plain_scores_do_not():
    """Each record has a level of its own, far above what membership adds; shadows know the level."""
    dice = np.random.default_rng(1)
    records, shadows = 200, 8
    level, truth = 10 * dice.normal(size=records), dice.random(records) < 0.5
    inside = np.stack([dice.permutation(records) < records // 2 for _ in range(shadows // 2)])
    inside = np.concatenate([inside, ~inside])
    known = level + inside + 0.3 * dice.normal(size=(shadows, records))
    scores = level + truth + 0.3 * dice.normal(size=records)
    assert compute_auc(scores, truth).value < 0.65
    assert compute_auc(compute_likelihood_ratios(scores, known, inside), truth).value > 0.95


def test_a_record_in_every_shadow_tells_nothing():
    with pytest.raises(PrivacyError, match="in some shadows and out of some"):
        compute_likelihood_ratios(np.zeros(2), np.zeros((3, 2)), np.array([[True, False]] * 3))
