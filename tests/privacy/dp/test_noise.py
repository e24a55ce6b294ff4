"""The noise is normal, of the standard deviation that was asked for, and nobody can foretell or repeat it."""

import hashlib
import multiprocessing
import os
import pickle
import random

import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.privacy.dp.noise_kernels import SUMMANDS, normal_values
from fedglm.privacy.errors import PrivacyError

MANY = 1_000_000


def counted(start=0):
    """Entropy for tests: the hashes of 0, 1, 2, ..."""
    numbers = iter(range(start, start + 10**6))
    return lambda size: hashlib.sha256(b"%d" % next(numbers)).digest()[:size]


def looks_normal(values, std):
    """Kolmogorov and Smirnov's test; it fails good noise once in a million times, and here finds 2 % surely."""
    return kstest(values.astype(np.float64) / std, "norm", method="asymp").pvalue > 1e-6


# The distribution.


@pytest.mark.parametrize("std", [1.0, pytest.param(3e-6, marks=pytest.mark.slow), 4e7])
def test_the_noise_is_normal_and_of_this_standard_deviation(std):
    values = GaussianNoise().normal(std, MANY)
    assert values.dtype == np.float32
    assert values.shape == (MANY,)
    assert looks_normal(values, std)
    assert not looks_normal(values, 0.98 * std)
    assert not looks_normal(values, 1.02 * std)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda noise: noise.normal(0.5, MANY),
        lambda noise: noise.normal(0.98, MANY),
        lambda noise: noise.normal(1.02, MANY),
        lambda noise: noise.normal(1.0, MANY) + np.float32(0.01),
        lambda noise: np.clip(noise.normal(1.0, MANY), -2.5, 2.5),
        lambda noise: (noise.uniform(MANY) - 0.5) * np.sqrt(12),
        lambda noise: np.where(noise.uniform(MANY) < 0.5, 0, noise.normal(1.0, MANY)),
    ],
    ids=["half", "2 % less", "2 % more", "shifted", "cut", "uniform", "every other"],
)
def test_the_same_test_rejects_noise_that_is_wrong(wrong):
    assert not looks_normal(wrong(GaussianNoise()), 1.0)


def test_the_tails_are_there():
    values = GaussianNoise().normal(1.0, 20_000_000)
    for limit in (4.0, 4.5, 5.0):
        expected = 2 * norm.sf(limit) * values.size  # 1266.9, 135.9 and 11.5
        assert abs(np.count_nonzero(np.abs(values) > limit) - expected) < 5.5 * np.sqrt(expected)
    assert 5 < np.abs(values).max() < 7.5


def test_neighbours_know_nothing_of_each_other():
    values = GaussianNoise().normal(1.0, MANY).astype(np.float64)
    for lag in (1, 2, 3, 1023, 1024, 1025, 2048, 4096):
        for power in (1, 2):
            left, right = values[:-lag] ** power, values[lag:] ** power
            assert abs(np.corrcoef(left, right)[0, 1]) < 6 / np.sqrt(MANY)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 2047, 2048, 2049, 5000])
def test_any_size(size):
    values = GaussianNoise().normal(1.0, size)
    assert values.shape == (size,)
    assert np.unique(values).size >= size - 2
    assert np.isfinite(values).all()


@pytest.mark.parametrize("std", [0.0, -1.0, 1e31, 1e-31, float("nan"), float("inf")])
def test_a_standard_deviation_that_float32_cannot_hold_is_refused(std):
    with pytest.raises(PrivacyError, match="standard deviation"):
        GaussianNoise().normal(std, 3)


def test_negative_sizes_are_refused():
    noise = GaussianNoise()
    for ask in (lambda: noise.normal(1.0, -1), lambda: noise.uniform(-1), lambda: noise.choice(-1, 0)):
        with pytest.raises(PrivacyError):
            ask()


# The kernel and its twin.


def plain_normal_values(words, std):
    """What defines `normal_values`, and the greatest radius, for the tolerance."""
    first, second = words[:, 0], words[:, 1]
    u = 1.0 - (first >> np.uint64(12)).astype(np.float64) * 2.0**-52
    radius = np.sqrt(-2 * np.log(u))
    angle = ((second >> np.uint64(12)).astype(np.float64) * 2.0**-52 - 0.5) * (np.pi / 2)
    swap, sign = (second & np.uint64(1)) > 0, (second & np.uint64(2)) > 0
    across = np.where(sign, -radius, radius) * np.where(swap, np.sin(angle), np.cos(angle))
    along = np.where(sign, -radius, radius) * np.where(swap, np.cos(angle), np.sin(angle))
    return np.concatenate([across.sum(0), along.sum(0)]) * std / 2


def kernel_values(words, std):
    out = np.empty(2 * words.shape[2], np.float32)
    normal_values(np.ascontiguousarray(words), std, out)
    return out


def test_the_kernel_computes_what_its_twin_does():
    words = np.frombuffer(os.urandom(8 * SUMMANDS * 2 * 50_000), np.uint64).reshape(SUMMANDS, 2, 50_000)
    np.testing.assert_allclose(kernel_values(words, 1.0), plain_normal_values(words, 1.0), rtol=1e-7, atol=1e-14)


def test_the_kernel_at_the_ends_of_its_words():
    ends = np.array([0, 1, 2, 3, 2**12, 2**63, 2**64 - 2**12, 2**64 - 1, 2**64 - 2, 0x6A09E667F3BCD000], np.uint64)
    pairs = np.array(np.meshgrid(ends, ends)).reshape(2, -1)
    words = np.zeros((SUMMANDS, 2, pairs.shape[1]), np.uint64)  # a first word of 0 is a radius of 0
    words[0] = pairs
    found = kernel_values(words, 2.0)  # so that std / 2 is 1, and values are those of one pair
    np.testing.assert_allclose(found, plain_normal_values(words, 2.0), rtol=1e-7, atol=1e-14)
    assert np.abs(found).max() == pytest.approx(np.sqrt(2 * 52 * np.log(2)), rel=1e-6)


def test_all_four_quarters_of_the_turn_are_reached_alike():
    words = np.zeros((SUMMANDS, 2, 100_000), np.uint64)
    words[0] = np.frombuffer(os.urandom(16 * 100_000), np.uint64).reshape(2, -1)
    found = kernel_values(words, 2.0)
    turns = (np.arctan2(found[100_000:], found[:100_000]) / (2 * np.pi)) % 1
    assert kstest(turns, "uniform", method="asymp").pvalue > 1e-6


# Nobody can repeat it.


def test_no_seed_of_an_experiment_reaches_the_noise():
    def after_seeding():
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        noise = GaussianNoise()
        return noise.normal(1.0, 100), noise.uniform(100), noise.choice(10_000, 100)

    for first, second in zip(after_seeding(), after_seeding(), strict=True):
        assert np.intersect1d(first, second).size < 10
    state = np.random.get_state()[1].copy(), torch.get_rng_state(), random.getstate()
    GaussianNoise().normal(1.0, 100)
    assert (np.random.get_state()[1] == state[0]).all()
    assert torch.equal(torch.get_rng_state(), state[1])
    assert random.getstate() == state[2]


def test_two_objects_and_two_calls_are_independent():
    first, second = GaussianNoise(), GaussianNoise()
    draws = [first.normal(1.0, MANY), first.normal(1.0, MANY), second.normal(1.0, MANY)]
    for i in range(3):
        for j in range(i):
            assert abs(np.corrcoef(draws[i], draws[j])[0, 1]) < 6 / np.sqrt(MANY)
            # By subtraction nothing cancels.
            assert looks_normal(draws[i] - draws[j], np.sqrt(2))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_parent_and_children_of_a_fork_draw_differently():
    noise = GaussianNoise()
    noise.normal(1.0, 10)
    context = multiprocessing.get_context("fork")
    draws = []
    for _ in range(2):
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=lambda end=sender: end.send(noise.normal(1.0, 1000)))
        child.start()
        draws.append(receiver.recv())
        child.join()
    draws.append(noise.normal(1.0, 1000))
    draws.append(pickle.loads(pickle.dumps(noise)).normal(1.0, 1000))  # noqa: S301 - our own bytes
    assert np.unique(np.concatenate(draws)).size > 3900


def test_every_call_has_a_fresh_key_and_no_other_source():
    asked = []

    def entropy(size):
        asked.append(os.urandom(size))
        return asked[-1]

    noise = GaussianNoise(entropy)
    noise.normal(1.0, 10_000)
    noise.normal(1.0, 3)
    noise.uniform(5)
    noise.choice(100, 2)
    assert [len(key) for key in asked] == [32] * 4
    assert len(set(asked)) == 4

    for draw in (lambda n: n.normal(1.0, 5000), lambda n: n.uniform(500), lambda n: n.choice(500, 30)):
        repeated, other = GaussianNoise(counted()), GaussianNoise(counted(5))
        first = draw(repeated)
        np.testing.assert_array_equal(first, draw(GaussianNoise(counted())))
        assert not np.array_equal(first, draw(other))
        assert not np.array_equal(first, draw(repeated))


def test_a_source_that_runs_dry_gives_no_noise():
    for wrong in (b"", bytes(31), bytes(33)):
        with pytest.raises(PrivacyError, match="entropy"):
            GaussianNoise(lambda _, wrong=wrong: wrong).normal(1.0, 3)


def test_the_words_of_a_stream_do_not_repeat():
    values = GaussianNoise().uniform(MANY)
    assert np.unique(values).size == MANY
    assert kstest(values, "uniform", method="asymp").pvalue > 1e-6
    assert 0 <= values.min() < 1e-4 < 1 - 1e-4 < values.max() < 1
