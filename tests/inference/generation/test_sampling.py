"""How the next token is chosen: exactly where it is not drawn, and with the right shares where it is."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedglm.inference.errors import InferenceError
from fedglm.inference.generation.sampling import Sampling, choose_token

LOGITS = arrays(np.float32, st.integers(1, 40), elements=st.floats(-30, 30, width=32))


def softmax(logits, temperature=1.0):
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def draw(logits, count, **settings):
    sampling = Sampling.of(seed=7, **settings)
    (generator,) = sampling.generators(1)
    return np.bincount([choose_token(logits, sampling, generator) for _ in range(count)], minlength=len(logits))


def chi_square(counts, shares):
    """Statistic of counts against shares, over the tokens that have a share."""
    expected = shares[shares > 0] * counts.sum()
    return float(((counts[shares > 0] - expected) ** 2 / expected).sum())


@given(LOGITS)
def test_without_a_temperature_the_likeliest_is_taken_of_equals_the_first(logits):
    token = choose_token(logits, Sampling(), None)
    assert token == int(np.flatnonzero(logits == logits.max())[0])


@given(LOGITS, st.integers(1, 50), st.floats(0.05, 1.0), st.floats(0.1, 3.0), st.integers(0, 9))
def test_only_what_top_k_and_top_p_leave_is_drawn(logits, k, p, temperature, seed):
    sampling = Sampling.of(temperature=temperature, top_k=k, top_p=p, seed=seed)
    (generator,) = sampling.generators(1)
    token = choose_token(logits, sampling, generator)
    better = logits > logits[token]
    assert better.sum() < k
    # What is likelier does not make up p already: a token is drawn only while it is needed. 1e-9 is for float64 sums.
    likeliest = np.sort(softmax(logits, temperature))[::-1][:k]
    assert softmax(logits, temperature)[better].sum() < p * likeliest.sum() + 1e-9


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_with_their_probabilities(temperature):
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    counts = draw(logits, 4000, temperature=temperature)
    # Three degrees of freedom: a right sampler exceeds 16.3 once in a thousand seeds; the seed is fixed.
    assert chi_square(counts, softmax(logits, temperature)) < 16.3
    for wrong in {0.5, 1.0, 2.0} - {temperature}:
        assert chi_square(counts, softmax(logits, wrong)) > 100


def test_the_cut_distributions_are_renormalized():
    logits = np.log(np.array([0.4, 0.3, 0.2, 0.1], dtype=np.float32))
    assert chi_square(counts := draw(logits, 4000, temperature=1, top_k=2), np.array([4 / 7, 3 / 7, 0, 0])) < 10.8
    assert counts[2:].sum() == 0
    # 0.4 + 0.3 is short of 0.75: the third token is needed.
    nucleus = draw(logits, 4000, temperature=1, top_p=0.75)
    assert chi_square(nucleus, np.array([4 / 9, 3 / 9, 2 / 9, 0])) < 13.8
    assert nucleus[3] == 0
    # Top-p is taken within the top-k: 0.75 of 0.7 is 0.525, for which two are needed.
    assert draw(logits, 500, temperature=1, top_k=2, top_p=0.5)[1] == 0


def test_a_seed_draws_the_same_whatever_texts_are_beside_it():
    sampling = Sampling.of(temperature=1, seed=3)
    alone, (_, second) = sampling.generators(1)[0], sampling.generators(2)
    assert np.array_equal(alone.random(5), sampling.generators(9)[0].random(5))
    assert not np.array_equal(sampling.generators(1)[0].random(5), second.random(5))
    unseeded = Sampling.of(temperature=1)
    assert not np.array_equal(unseeded.generators(1)[0].random(5), unseeded.generators(1)[0].random(5))
    assert [Sampling().is_repeatable, sampling.is_repeatable, unseeded.is_repeatable] == [True, True, False]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": -1}, "temperature = -1"),
        ({"temperature": math.nan}, "temperature = nan"),
        ({"temperature": 1, "top_p": 0}, "top_p = 0"),
        ({"temperature": 1, "top_p": 1.5}, "top_p = 1.5"),
        ({"temperature": 1, "top_k": 0}, "top_k = 0"),
        ({"top_k": 5}, "give a temperature above 0 too"),
        ({"top": 5}, "unknown key top: did you mean top_"),
    ],
)
def test_settings_out_of_range_are_refused(settings, said):
    with pytest.raises(InferenceError, match=said):
        Sampling.of(**settings)


def test_an_output_that_is_no_number_is_an_error():
    with pytest.raises(InferenceError, match="not a number"):
        choose_token(np.array([0.0, np.nan], dtype=np.float32), Sampling(), None)
