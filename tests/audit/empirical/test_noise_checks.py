"""Correct noise raises no alarm, small parts included; noise that is too weak, repeated or of another shape does."""

import numpy as np
import pytest

from fedglm.audit.empirical import noise_checks
from fedglm.audit.empirical.noise_checks import find_noise_faults
from fedglm.privacy.dp.noise import GaussianNoise

PARTS = {"body": slice(0, 99_000), "bias": slice(99_000, 99_064), "head": slice(99_064, 100_000)}


def noise():
    return GaussianNoise().normal(1.0, 100_000).astype(np.float64)


@pytest.mark.parametrize("draws", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_correct_noise_raises_no_alarm(draws):
    assert [find_noise_faults(2.5 * noise(), 2.5, PARTS) for _ in range(draws)] == [[]] * draws
    tiny = {str(place): slice(place, place + 2) for place in range(0, 200, 2)}
    for _ in range(draws):
        assert find_noise_faults(GaussianNoise().normal(1.0, 200).astype(np.float64), 1.0, tiny) == []


def test_a_single_value_is_noise_too():
    assert find_noise_faults(np.array([1.0]), 1.0, {"scale": slice(0, 1)}) == []


def without(place):
    def spoil(values):
        values[place] = 0

    return spoil


def scaled(place, factor):
    def spoil(values):
        values[place] *= factor

    return spoil


def moved(values):
    values[PARTS["head"]] += 0.3


def for_neighbours(values):
    values[:] = np.repeat(values[:12_500], 8)


def in_blocks(length):
    def spoil(values):
        values[:] = np.resize(values[:length], len(values))

    return spoil


def of_two_values(values):
    values[:] = np.sign(values)


def some_rows_without(values):
    values[: 64 * 12].reshape(12, 64)[:] = 0


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (without(PARTS["head"]), "head: 0.000 times"),
        (without(PARTS["bias"]), "bias: 0.000 times"),
        (scaled(PARTS["head"], 0.7), "head: 0."),
        (scaled(slice(None), 0.95), "all: 0.9"),
        (scaled(slice(None), 1.05), "all: 1.0"),
        (moved, "head: a mean"),
        (for_neighbours, "apart correlate"),
        (in_blocks(64), "apart correlate"),
        (in_blocks(2048), "apart correlate"),
        (in_blocks(31_337), "values 31,337 apart"),
        (of_two_values, "of the values"),
        (some_rows_without, "within"),
    ],
)
def test_incorrect_noise_is_detected(spoil, expected):
    values = noise()
    spoil(values)
    faults = find_noise_faults(values, 1.0, PARTS)
    assert any(expected in fault for fault in faults), faults


@pytest.mark.parametrize(("draws", "most"), [(200, 37), pytest.param(500, 77, marks=pytest.mark.slow)])
def test_correct_noise_is_alarmed_at_no_more_often_than_the_limits_say(monkeypatch, draws, most):
    """With limits so tight that there is something to count; so many, at a rate of 10 %, have a probability of 1e-4."""
    monkeypatch.setattr(noise_checks, "ALARM", 0.1)
    dice = np.random.default_rng(8)
    parts = {"body": slice(0, 2900), "bias": slice(2900, 2910), "head": slice(2910, 3000)}
    alarms = sum(bool(find_noise_faults(dice.normal(size=3000), 1.0, parts)) for _ in range(draws))
    assert 0 < alarms < most
