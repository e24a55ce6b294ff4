"""Checks whether values are what a mechanism's noise must be: normal, of one scale on every part, independent.

Correct noise is rejected with a probability of at most `ALARM` in all: each limit below is exact, or a bound for any
number of values, and they share `ALARM` among them.

    spread and mean   of every part, and of all: the sum of squares is chi-square, the mean normal
    shares            how many values of every part lie near 0, where left-out noise shows, and how many far from it,
                      where noise of another shape shows: binomial
    repetition        the correlation of values any distance apart, in pieces of 2^22 values: a quadratic form of normal
                      values (Laurent and Massart 2000, lemma 1), so that no value is used twice
"""

import math
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.fft import irfft, next_fast_len, rfft  # type: ignore[import-untyped]
from scipy.special import ndtr  # type: ignore[import-untyped]
from scipy.stats import binom, chi2, norm  # type: ignore[import-untyped]

Values = npt.NDArray[np.float64]

ALARM: Final = 1e-7

_NEAR: Final = (1e-3, 0.05)
_FAR: Final = (2.0, 4.0)
_CHUNK: Final = 1 << 22
_TESTS_A_PART: Final = 2 + len(_NEAR) + len(_FAR)
"""Tests of each part."""


def find_noise_faults(values: Values, expected: float, parts: Mapping[str, slice]) -> list[str]:
    """Describe what is wrong with values that should be noise.

    Args:
        values: (n,) float64 of expected mean 0.
        expected: Expected standard deviation.
        parts: Place of each part, as in a layout; each is tested by itself, for a small one would be lost in the whole.

    Returns:
        Descriptions of faults: of all values, of each part, and of repetition; empty if the values may well be noise.
    """
    scaled = values / expected
    everywhere = {"all": slice(0, len(values)), **parts}
    level = ALARM / 2 / len(everywhere) / _TESTS_A_PART
    faults = []
    for name, place in everywhere.items():
        faults += [f"{name}: {fault}" for fault in _find_part_faults(scaled[place], level)]
    return faults + list(_find_repetition(scaled, ALARM / 2))


def _find_part_faults(part: Values, level: float) -> Iterable[str]:
    """Yield the faults of spread, mean and shares in one part, of expected standard deviation 1."""
    count, size = len(part), np.abs(part)
    square = float(part @ part)
    if min(chi2.sf(square, count), chi2.cdf(square, count)) <= level / 2:
        yield f"{math.sqrt(square / count):.3f} times the spread that is claimed"
    mean = float(part.mean())
    if 2 * norm.sf(abs(mean) * math.sqrt(count)) <= level:
        yield f"a mean of {mean:+.3f} spreads"
    for limit in _NEAR:
        if _is_improbable(int((size < limit).sum()), count, 1 - 2 * float(ndtr(-limit)), level):
            yield f"{(size < limit).mean():.2%} of the values within {limit:g} spreads of 0"
    for limit in _FAR:
        if _is_improbable(int((size > limit).sum()), count, 2 * float(ndtr(-limit)), level):
            yield f"{(size > limit).mean():.2%} of the values beyond {limit:g} spreads"


def _is_improbable(count: int, trials: int, probability: float, level: float) -> bool:
    """Return whether a binomial count is so small or so large with a probability of at most `level`."""
    return bool(min(binom.sf(count - 1, trials, probability), binom.cdf(count, trials, probability)) <= level / 2)


def _find_repetition(scaled: Values, level: float) -> Iterable[str]:
    """Yield the distance at which values of a piece correlate most, if that is improbable."""
    pieces = [scaled[start : start + _CHUNK] for start in range(0, len(scaled), _CHUNK)]
    for piece in pieces:
        count = len(piece)
        # z' M z of a shift by k has no trace, a squared Frobenius norm of (n - k) / 2 and a spectral norm below 1.
        deviation = math.log(2 * max(1, count - 1) * len(pieces) / level)
        limits = np.sqrt(2 * deviation * (count - np.arange(count))) + 2 * deviation
        sums = np.abs(_autocorrelate(piece))
        worst = 1 + int(np.argmax(sums[1:] / limits[1:])) if count > 1 else 0
        if worst and sums[worst] > limits[worst]:
            yield f"values {worst:,} apart correlate by {sums[worst] / (count - worst):.3f}"


def _autocorrelate(piece: Values) -> Values:
    """Return (n,) float64, for each distance k from 0, the sum over i of z_i z_(i + k)."""
    size = next_fast_len(2 * len(piece), real=True)
    power = rfft(piece, size)
    power *= power.conj()
    return np.asarray(irfft(power, size)[: len(piece)], np.float64)
