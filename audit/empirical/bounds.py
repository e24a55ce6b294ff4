"""How much privacy one run lost at least: lower bounds and an estimate of epsilon from guesses about canaries.

Each of m canaries was in the training data or not, by an independent coin, and whoever sees what was released guesses
some of the coins. Too many correct guesses contradict a claim of privacy.

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
"""Shares of the canaries that are guessed, the surest first. They are fixed beforehand; each costs confidence."""
FEW_SHARES: Final = (0.2, 0.5, 1.0)
"""The same for fewer than 1,000 canaries, where small shares are too few guesses to contradict anything."""

MIN_CANARIES: Final = 40
"""Fewer show nothing: even if every guess were correct, that would hardly contradict an epsilon of 2."""

_MAX_EPSILON: Final = 60.0
"""More than guesses can contradict: 20,000 of them, all correct, contradict no epsilon above 13."""
_PRECISION: Final = 1e-3


@dataclass(frozen=True)
class Guesses:
    """Guesses about some of the canaries.

    Attributes:
        canaries: Number of canaries.
        made: Number of guesses.
        correct: Number of correct guesses.
    """

    canaries: int
    made: int
    correct: int


def make_guesses(scores: npt.ArrayLike, inside: npt.ArrayLike, shares: Sequence[float] | None = None) -> list[Guesses]:
    """Guess the canaries with the highest scores to be in, and as many with the lowest to be out.

    Args:
        scores: (m,) how much each canary seems to be in.
        inside: (m,) bool, the coins.
        shares: Shares of the canaries that are guessed, each giving one set of guesses; by default chosen by their
            number.

    Raises:
        PrivacyError: The shapes differ, a score is not finite, or there are fewer than 40 canaries.
    """
    values, coins = np.asarray(scores, np.float64), np.asarray(inside)
    if values.ndim != 1 or coins.shape != values.shape or coins.dtype != bool or not np.isfinite(values).all():
        raise PrivacyError("an audit takes as many finite scores as coins")
    if len(values) < MIN_CANARIES:
        raise PrivacyError(f"{len(values)} canaries say nothing: plant {MIN_CANARIES} or more")
    order = np.argsort(values, kind="stable")
    guesses = []
    for share in shares or (SHARES if len(values) >= 1000 else FEW_SHARES):
        half = max(1, round(share * len(values) / 2))
        correct = int(coins[order[-half:]].sum() + (~coins[order[:half]]).sum())
        guesses.append(Guesses(len(values), 2 * half, correct))
    return guesses


def bound_one_run_epsilon(guesses: Sequence[Guesses], delta: float, confidence: float = CONFIDENCE) -> float:
    """Return the largest epsilon that the guesses contradict, at `delta`; 0 if they contradict none.

    Args:
        guesses: Sets of guesses; the more there are, the stricter the level for each.
        delta: Delta of the claim.
        confidence: Probability with which a true claim is not contradicted.
    """
    level = (1 - confidence) / len(guesses)

    def contradicted(one: Guesses) -> Callable[[float], bool]:
        return lambda epsilon: compute_one_run_p_value(one, epsilon, delta) <= level

    return max(_find_max(contradicted(one)) for one in guesses)


def compute_one_run_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """Return the largest probability of so many correct guesses about an (epsilon, delta)-private mechanism."""
    chance = 1 / (1 + math.exp(-epsilon))
    beta = float(binom.sf(guesses.correct - 1, guesses.made, chance))
    alpha = 0.0
    if delta > 0:
        fewer = np.arange(1, guesses.correct + 1)
        tails = binom.sf(guesses.correct - fewer - 1, guesses.made, chance)
        alpha = float(np.max((tails - beta) / fewer, initial=0.0))
    return min(1.0, beta + 2 * guesses.canaries * delta * alpha)


def bound_f_dp_epsilon(guesses: Sequence[Guesses], delta: float, confidence: float = CONFIDENCE) -> float:
    """Return the epsilon of the least noisy Gaussian mechanism that the guesses contradict; 0 for none.

    The claim that is tested is that of a Gaussian mechanism with all its deltas, which is stronger than one pair.

    Args:
        guesses: Sets of guesses; the more there are, the stricter the level for each.
        delta: Delta of the result.
        confidence: Probability with which a true claim is not contradicted.
    """
    level = (1 - confidence) / len(guesses)

    def contradicted(one: Guesses) -> Callable[[float], bool]:
        return lambda mu: contradicts_gaussian(one, mu, level)

    return convert_mu_to_epsilon(max(_find_max(contradicted(one)) for one in guesses), delta)


def contradicts_gaussian(guesses: Guesses, mu: float, level: float) -> bool:
    """Return whether so many correct guesses about a mu-Gaussian-private mechanism have a probability below `level`.

    Otherwise, going down guess by guess, the trade-off curve would require so much probability on fewer correct guesses
    that in the end it exceeded the total (theorem and algorithm 3 of the paper, with abstentions).
    """
    total = guesses.made / guesses.canaries
    correct = level * total * guesses.correct / guesses.made
    wrong = level * total * (guesses.made - guesses.correct) / guesses.made
    for place in range(guesses.correct - 1, -1, -1):
        if correct >= 1:
            return True
        needed = max(wrong, float(ndtr(ndtri(correct) - mu)))
        correct += place / (guesses.made - place) * (needed - wrong)
        wrong = needed
        if correct + wrong > total:
            return True
    return False


def convert_mu_to_epsilon(mu: float, delta: float) -> float:
    """Return epsilon at `delta` of mu-Gaussian privacy (Dong, Roth and Su 2019, arXiv 1905.02383, corollary 2.13).

    With x = mu / 2 - epsilon / mu and y = mu - x, delta is Phi(x) - e^epsilon Phi(-y), and e^epsilon Phi(-y) is phi(x)
    times Mills' ratio of y: no figure overflows, however large epsilon is.
    """
    if mu <= 0 or _compute_log_delta(mu / 2, mu / 2) <= math.log(delta):
        return 0.0
    # Phi(x) alone is at least delta, so that x is at least the quantile of delta.
    x = _bisect(float(ndtri(delta)), mu / 2, lambda x: _compute_log_delta(x, mu - x) <= math.log(delta))
    return mu * (mu / 2 - x)


def convert_epsilon_to_mu(epsilon: float, delta: float) -> float:
    """Return the mu of Gaussian privacy that has this epsilon, of any finite size, at `delta`.

    With the names of `convert_mu_to_epsilon`, mu = x + y with y^2 = x^2 + 2 epsilon, and x lies between the quantile of
    delta and about 40 for every epsilon.

    Raises:
        PrivacyError: Epsilon is negative or not finite.
    """
    if epsilon < 0 or not math.isfinite(epsilon):
        raise PrivacyError(f"epsilon is a finite number from 0, not {epsilon!r}")

    def y_of(x: float) -> float:
        return math.hypot(x, math.sqrt(2) * math.sqrt(epsilon))

    x = _bisect(float(ndtri(delta)), 40.0, lambda x: _compute_log_delta(x, y_of(x)) <= math.log(delta))
    y = y_of(x)
    return x + y if x > 0 else 2 * epsilon / (y - x)


def _compute_log_delta(x: float, y: float) -> float:
    """Return the logarithm of Phi(x) - phi(x) Mills(y); minus infinity if rounding leaves nothing."""
    log_phi = float(log_ndtr(x))
    tail = -x * x / 2 + math.log(float(erfcx(y / math.sqrt(2))) / 2)
    return log_phi + math.log(-math.expm1(tail - log_phi)) if tail < log_phi else -math.inf


def _bisect(low: float, high: float, below: Callable[[float], bool]) -> float:
    """Return where `below`, true at `low` and false at `high`, changes: the last float at which it is true."""
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if below(middle) else (low, middle)
    return low


@dataclass(frozen=True)
class GaussianEstimate:
    """Estimate from the scores of canaries.

    Attributes:
        mu: Distance of the means of canaries in and out, in standard deviations of those out.
        lower: Lower end of mu with 95 % confidence, if scores are normal: an estimate, no certificate.
    """

    mu: float
    lower: float


def estimate_gaussian(scores: npt.ArrayLike, inside: npt.ArrayLike) -> GaussianEstimate:
    """Estimate how far apart the scores of canaries in and out are.

    Args:
        scores: (m,) how much each canary seems to be in.
        inside: (m,) bool, the coins.

    Raises:
        PrivacyError: There are too few canaries in or out, or the scores have no spread.
    """
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


def _find_max(holds: Callable[[float], bool]) -> float:
    """Return the largest number up to 60 for which `holds` is true, to 0.001; 0 if there is none.

    It must be true for all smaller numbers, too.
    """
    if not holds(_PRECISION):
        return 0.0
    low, high = _PRECISION, 1.0
    while high < _MAX_EPSILON and holds(high):
        low, high = high, 2 * high
    high = min(high, _MAX_EPSILON)
    while high - low > _PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
