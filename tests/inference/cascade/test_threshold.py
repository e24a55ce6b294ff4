"""Thresholds on a population whose truth is known: a small model that errs the more often the less sure it is."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.cascade.cascade import Cascade
from fedglm.inference.cascade.entropy import normalized_entropy
from fedglm.inference.cascade.threshold import CANDIDATES, threshold_for_agreement, threshold_for_budget
from fedglm.inference.errors import InferenceError


def population(count, seed):
    """Probabilities of two classes by both models; where the small one says p, the larger agrees with probability p."""
    rng = np.random.default_rng(seed)
    sure = rng.uniform(0.5, 1, count)
    small = np.stack([sure, 1 - sure], axis=1)
    agrees = rng.random(count) < sure
    return small, np.where(agrees[:, None], [[0.9, 0.1]], [[0.1, 0.9]])


SURE = np.linspace(0.5, 1, 4001)
ENTROPY = normalized_entropy(np.stack([SURE, 1 - SURE], axis=1))


def true_agreement(entropy):
    """Agreement of the cascade in that population: those that stay agree with probability p, uniform on 0.5 to 1."""
    return np.where(entropy >= ENTROPY, SURE, 1).mean()


@given(st.integers(1, 300), st.integers(0, 99), st.floats(0, 1))
def test_no_more_go_up_than_the_budget_allows_and_the_least_sure_first(count, seed, share):
    small, large = population(count, seed)
    found = threshold_for_budget(small, large, share_up=share)
    entropies = normalized_entropy(small)
    assert found.share_up == (entropies > found.entropy).mean() <= share
    assert found.share_up > share - 1 / count  # all entropies differ, so none more could go
    assert found.examples == count


@given(st.integers(1, 300), st.integers(0, 99), st.floats(0, 1), st.floats(0.5, 0.99))
def test_the_agreement_holds_on_the_examples_and_a_laxer_one_sends_no_more_up(count, seed, agreement, confidence):
    small, large = population(count, seed)
    found = threshold_for_agreement(small, large, agreement=agreement, confidence=confidence)
    answers = Cascade(lambda rows: small[rows], lambda rows: large[rows], threshold=found.entropy).predict(range(count))
    same = np.mean([answer.label == large[row].argmax() for row, answer in enumerate(answers)])
    assert same == pytest.approx(found.agreement)
    assert found.agreement >= found.agreement_at_least >= agreement - 1e-12
    assert found.share_up == np.mean([answer.went_up for answer in answers])
    laxer = threshold_for_agreement(small, large, agreement=agreement / 2, confidence=confidence)
    assert laxer.entropy >= found.entropy


def test_models_that_always_agree_send_none_up():
    small, _ = population(500, 0)
    found = threshold_for_agreement(small, small, agreement=0.99)
    assert (found.entropy, found.share_up, found.agreement) == (1, 0, 1)


def test_all_go_up_where_so_few_examples_prove_nothing():
    small, _ = population(10, 0)
    found = threshold_for_agreement(small, small, agreement=0.99)  # 0.05^(1/10) = 0.74 is all that ten can prove
    assert (found.entropy, found.share_up, found.agreement_at_least) == (-1, 1, 1)
    assert threshold_for_budget(small, small, share_up=0).agreement_at_least == pytest.approx(0.05 ** (1 / 10))


def failures(confidence, wanted=0.9, trials=400, count=400):
    found = [threshold_for_agreement(*population(count, seed), agreement=wanted, confidence=confidence).entropy
             for seed in range(trials)]  # fmt: skip
    return sum(true_agreement(entropy) < wanted for entropy in found)


def test_the_promise_fails_no_more_often_than_its_confidence_says():
    # Of 400 calibrations at 95 % at most 20 should miss; four standard deviations more are 37. At a confidence of 50 %
    # far more do: the test would see a bound that is none.
    assert failures(0.95) <= 37
    assert failures(0.5) > 37


def test_candidates_are_fixed_and_ascend_from_none_to_all():
    assert CANDIDATES[0] == 0
    assert CANDIDATES[-1] == 1
    assert list(CANDIDATES) == sorted(CANDIDATES)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda s, large: threshold_for_agreement(s, large[:5], agreement=0.9), "same examples"),
        (lambda s, large: threshold_for_agreement(s[:0], large[:0], agreement=0.9), "same examples"),
        (lambda s, large: threshold_for_agreement(s, large, agreement=1.1), "within 0 to 1"),
        (lambda s, large: threshold_for_agreement(s, large, agreement=0.9, confidence=1), "below 1"),
        (lambda s, large: threshold_for_budget(s, large, share_up=-0.1), "within 0 to 1"),
        (lambda s, large: threshold_for_budget(s, 2 * large, share_up=0.1), "sum to 1"),
    ],
)
def test_what_cannot_be_set_is_refused(ask, message):
    with pytest.raises(InferenceError, match=message):
        ask(*population(10, 0))
