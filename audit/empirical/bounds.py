"""How much privacy was lost at the least, from one run: bounds and an estimate from guesses about canaries.

Each of m canaries was in the training data or not, by a coin of its own, and whoever sees what was released guesses
some of the coins. Too many right guesses contradict a claim of privacy.

    one run     Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846), theorem 5.2: rigorous for any mechanism
    f-DP        Mahloujifar, Melis and Chaudhuri 2024 (arXiv 2410.22235): as rigorous, and tighter, against the whole
                trade-off curve of a Gaussian mechanism instead of one (epsilon, delta)
    Gaussian    after Andrew et al. 2024 (arXiv 2302.03098): an estimate from means and spread, no certificate
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.special import erfcx, log_ndtr, ndtr, ndtri  # type: ignore[import-untyped]
from scipy.stats import binom  # type: ignore[import-untyped]

from fedglm.privacy.errors import PrivacyError

CONFIDENCE: Final = 0.95
SHARES: Final = (0.02, 0.05, 0.1, 0.2)
"""Shares of the canaries that are guessed, the surest first. They are settled beforehand; each costs confidence."""
FEW_SHARES: Final = (0.2, 0.5, 1.0)
"""The same for fewer than 1,000 canaries, where small shares are too few guesses to contradict anything."""

MIN_CANARIES: Final = 40
"""Fewer say nothing: were every guess right, that would hardly contradict an epsilon of 2."""

_MOST: Final = 60.0
"""Above what guesses can contradict: 20,000 of them, all right, contradict no epsilon above 13."""
_PRECISION: Final = 1e-3


@dataclass(frozen=True)
class Guesses:
    """Guesses about some of the canaries.

    Attributes:
        canaries: How many there were.
        made: How many were guessed.
        right: How many guesses were right.
    """

    canaries: int
    made: int
    right: int


def guesses(scores: npt.ArrayLike, inside: npt.ArrayLike, shares: Sequence[float] | None = None) -> list[Guesses]:
    """Guess the canaries with the highest scores to be in, and as many with the lowest to be out.

    Args:
        scores: (m,) how much each canary seems to be in.
        inside: (m,) bool, the coins.
        shares: Of the canaries that are guessed, one set of guesses for each; by their number alone without it.

    Raises:
        PrivacyError: The shapes differ, a score is not finite, or there are fewer than 40 canaries.
    """
    values, coins = np.asarray(scores, np.float64), np.asarray(inside)
    if values.ndim != 1 or coins.shape != values.shape or coins.dtype != bool or not np.isfinite(values).all():
        raise PrivacyError("an audit takes as many finite scores as coins")
    if len(values) < MIN_CANARIES:
        raise PrivacyError(f"{len(values)} canaries say nothing: plant {MIN_CANARIES} or more")
    order = np.argsort(values, kind="stable")
    found = []
    for share in shares or (SHARES if len(values) >= 1000 else FEW_SHARES):
        half = max(1, round(share * len(values) / 2))
        right = int(coins[order[-half:]].sum() + (~coins[order[:half]]).sum())
        found.append(Guesses(len(values), 2 * half, right))
    return found


def one_run_epsilon(found: Sequence[Guesses], delta: float, confidence: float = CONFIDENCE) -> float:
    """The greatest epsilon that the guesses contradict, at `delta`; 0 where they contradict none.

    Args:
        found: Sets of guesses; for their number, each is held to a stricter level.
        delta: Of the claim.
        confidence: Probability with which a true claim is not contradicted.
    """
    level = (1 - confidence) / len(found)

    def contradicted(one: Guesses) -> Callable[[float], bool]:
        return lambda epsilon: one_run_p_value(one, epsilon, delta) <= level

    return max(_greatest(contradicted(one)) for one in found)


def one_run_p_value(found: Guesses, epsilon: float, delta: float) -> float:
    """Greatest probability of so many right guesses about an (epsilon, delta)-private mechanism."""
    chance = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(found.right - 1, found.made, chance))
    alpha = 0.0
    if delta > 0:
        fewer = np.arange(1, found.right + 1)
        tails = binom.sf(found.right - fewer - 1, found.made, chance)
        alpha = float(np.max((tails - beta) / fewer, initial=0.0))
    return min(1.0, beta + 2 * found.canaries * delta * alpha)


def f_dp_epsilon(found: Sequence[Guesses], delta: float, confidence: float = CONFIDENCE) -> float:
    """The epsilon, at `delta`, of the least noisy Gaussian mechanism that the guesses contradict; 0 for none.

    The claim that is tested is that of a Gaussian mechanism with all its deltas, which says more than one pair.
    Arguments as of `one_run_epsilon`.
    """
    level = (1 - confidence) / len(found)

    def contradicted(one: Guesses) -> Callable[[float], bool]:
        return lambda mu: contradicts_gaussian(one, mu, level)

    return epsilon_of_gaussian(max(_greatest(contradicted(one)) for one in found), delta)


def contradicts_gaussian(found: Guesses, mu: float, level: float) -> bool:
    """Whether so many right guesses about a mu-Gaussian-private mechanism have a probability below `level`.

    If they had as much, then, guess by guess downwards, so much probability would lie on fewer right guesses as the
    trade-off curve asks for, and in the end more than there is (theorem and algorithm 3 of the paper, with
    abstentions).
    """
    whole = found.made / found.canaries
    right = level * whole * found.right / found.made
    wrong = level * whole * (found.made - found.right) / found.made
    for place in range(found.right - 1, -1, -1):
        if right >= 1:
            return True
        least = max(wrong, float(ndtr(ndtri(right) - mu)))
        right += place / (found.made - place) * (least - wrong)
        wrong = least
        if right + wrong > whole:
            return True
    return False


def epsilon_of_gaussian(mu: float, delta: float) -> float:
    """Epsilon at `delta` of mu-Gaussian privacy (Dong, Roth and Su 2019, arXiv 1905.02383, corollary 2.13).

    With x = mu / 2 - epsilon / mu and y = mu - x, delta is Phi(x) - e^epsilon Phi(-y), and e^epsilon Phi(-y) is
    phi(x) times Mills' ratio of y: no figure overflows, however great epsilon is.
    """
    if mu <= 0 or _log_delta(mu / 2, mu / 2) <= math.log(delta):
        return 0.0
    # Phi(x) alone is no less than delta, so that x is no less than its quantile.
    x = _crossing(float(ndtri(delta)), mu / 2, lambda x: _log_delta(x, mu - x) <= math.log(delta))
    return mu * (mu / 2 - x)


def mu_of_epsilon(epsilon: float, delta: float) -> float:
    """The mu of Gaussian privacy that has this epsilon, of any finite size, at `delta`; names as above.

    mu = x + y with y^2 = x^2 + 2 epsilon, and x lies between the quantile of delta and some 40, wherever epsilon is.
    """
    if epsilon < 0 or not math.isfinite(epsilon):
        raise PrivacyError(f"epsilon is a finite number from 0, not {epsilon!r}")

    def y_of(x: float) -> float:
        return math.hypot(x, math.sqrt(2) * math.sqrt(epsilon))

    x = _crossing(float(ndtri(delta)), 40.0, lambda x: _log_delta(x, y_of(x)) <= math.log(delta))
    y = y_of(x)
    return x + y if x > 0 else 2 * epsilon / (y - x)


def _log_delta(x: float, y: float) -> float:
    """Logarithm of Phi(x) - phi(x) Mills(y); minus infinity where rounding leaves nothing."""
    whole = float(log_ndtr(x))
    tail = -x * x / 2 + math.log(float(erfcx(y / math.sqrt(2))) / 2)
    return whole + math.log(-math.expm1(tail - whole)) if tail < whole else -math.inf


def _crossing(low: float, high: float, below: Callable[[float], bool]) -> float:
    """Where `below`, true at `low` and false at `high`, changes: as near as floats are, on the side where it holds."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if below(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class GaussianEstimate:
    """What the scores look like.

    Attributes:
        mu: Distance of the means of canaries in and out, in standard deviations of those out.
        least: What mu is at the least, with 95 % confidence, if scores are normal: an estimate, no certificate.
    """

    mu: float
    least: float


def gaussian_estimate(scores: npt.ArrayLike, inside: npt.ArrayLike) -> GaussianEstimate:
    """Estimate how far apart the scores of canaries in and out lie; arguments as of `guesses`."""
    values, coins = np.asarray(scores, np.float64), np.asarray(inside, bool)
    those_in, out = values[coins], values[~coins]
    if min(len(those_in), len(out)) < 2:
        raise PrivacyError("an estimate takes canaries in and canaries out")
    spread = float(out.std(ddof=1))
    if spread == 0:
        raise PrivacyError("all canaries that are out have one score: there is no noise")
    mu = (float(those_in.mean()) - float(out.mean())) / spread
    error = math.sqrt(float(those_in.var(ddof=1)) / len(those_in) + spread**2 / len(out)) / spread
    error = math.hypot(error, mu / math.sqrt(2 * (len(out) - 1)))
    return GaussianEstimate(mu, max(0.0, mu - 1.645 * error))


def _greatest(holds: Callable[[float], bool]) -> float:
    """The greatest number up to 60 for which `holds` is True, to 0.001; it is True below it, and 0 if nowhere."""
    if not holds(_PRECISION):
        return 0.0
    low, high = _PRECISION, 1.0
    while high < _MOST and holds(high):
        low, high = high, 2 * high
    high = min(high, _MOST)
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
