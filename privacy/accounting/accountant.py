"""What a history of mechanisms spends: epsilon at a given delta, and the noise that a budget asks for.

Three accountants that others wrote and tested compute the same: Opacus' PRV (Gopi, Lee and Wutschitz 2021), Google's
PLD (Doroshenko et al. 2022) and RDP (Mironov 2017). Each gives an upper bound. The headline is the greater of the first
two, which agree to 0.02; RDP is looser, quick, and shown beside them.

PRV's error is 0.01 up to 50,000 steps and grows with their square root after, for its memory would grow instead.
Opacus' GDP accountant reports less than is spent, so it has no place here.

Both are imported when first asked, and Opacus' analysis without Opacus: a reader of ledgers needs no torch.
"""

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from fedglm.privacy.accounting.opacus_analysis import analysis
from fedglm.privacy.dp.mechanism import Event
from fedglm.privacy.errors import PrivacyError

MIN_DELTA: Final = 1e-10
GREATEST_DELTA: Final = 0.1
MIN_NOISE: Final = 0.1
"""`calibrate` returns no smaller noise multiplier, whatever the budget."""

_MAX_NOISE: Final = 10_000.0
_TIGHT_UP_TO: Final = 50.0
"""Above this epsilon, which promises nothing, RDP is told alone: PLD would take minutes there, and PRV overflows."""
_ORDERS: Final = (*(1 + x / 10 for x in range(1, 100)), *range(12, 64), 64, 80, 96, 128, 192, 256, 384, 512, 1024)

_Merged = tuple[tuple[float, float, int], ...]
"""(noise multiplier, sampling rate, steps), each pair of the first two once, in order."""


@dataclass(frozen=True)
class Spent:
    """What a history spends.

    Attributes:
        epsilon: The headline: the greater of `prv` and `pld`, or `rdp` where those are None.
        prv: By privacy loss random variables; None where `rdp` is above 50 or the accountant gives up.
        pld: By privacy loss distributions; None where `prv` is.
        rdp: By Renyi differential privacy, a looser bound; infinite where there is none.
        delta: The delta that all of them hold at.
    """

    epsilon: float
    prv: float | None
    pld: float | None
    rdp: float
    delta: float


def spent(history: Iterable[Event], delta: float) -> Spent:
    """Epsilon of all of `history` together, for one unit added or removed.

    Equal (noise multiplier, sampling rate) are one entry to the accountants, so a thousand rounds of one plan cost what
    one costs. An empty history spends nothing.

    Raises:
        PrivacyError: `delta` is not between 1e-10 and 0.1.
    """
    _check_delta(delta)
    return _spent(_merge(history), delta)


def within(history: Iterable[Event], epsilon: float, delta: float) -> bool:
    """Whether `spent(history, delta).epsilon` is at most `epsilon`.

    Below it, the quicker accountants say so: RDP, then PLD. Theirs are upper bounds as well.

    Raises:
        PrivacyError: `delta` is not between 1e-10 and 0.1.
    """
    _check_delta(delta)
    merged = _merge(history)
    if not merged:
        return True
    # PRV may lie above the others, by twice its own error.
    room = epsilon - 3 * _prv_error(merged)
    rdp = _rdp(merged, delta)
    if rdp <= room or (rdp <= _TIGHT_UP_TO and _pld(merged, delta, _interval(merged)) <= room):
        return True
    return _spent(merged, delta).epsilon <= epsilon


def upper_bound(history: Iterable[Event], delta: float) -> float:
    """Epsilon of all of `history` by PLD, or by RDP where that is above 50: quicker than `spent`, and as near to 0.02.

    Raises:
        PrivacyError: `delta` is not between 1e-10 and 0.1.
    """
    _check_delta(delta)
    merged = _merge(history)
    if not merged:
        return 0.0
    rdp = _rdp(merged, delta)
    return rdp if rdp > _TIGHT_UP_TO else _pld(merged, delta, _interval(merged))


def calibrate(epsilon: float, delta: float, sampling_rate: float, steps: int, history: Iterable[Event] = ()) -> float:
    """The least noise multiplier with which `steps` more steps stay within the budget, to 0.001 (above 2, to 0.1 %).

    Args:
        epsilon: The budget, above 0 and at most 50.
        delta: The delta of the budget.
        sampling_rate: Probability of each unit to be in a step's sample.
        steps: All steps that are planned, over all rounds.
        history: What was spent before on the same data.

    Returns:
        A multiple of 0.001, at least 0.1 even where less would do.

    Raises:
        PrivacyError: No noise is enough (the history alone may exceed the budget), or an argument is out of bounds.
    """
    _check_delta(delta)
    if not 0 < epsilon <= _TIGHT_UP_TO:
        raise PrivacyError(f"epsilon is a number above 0 and at most {_TIGHT_UP_TO:g}, not {epsilon!r}")
    earlier = list(history)
    already = _spent(_merge(earlier), delta).epsilon
    if already > epsilon:
        raise PrivacyError(f"the budget is spent: epsilon {already:.3f} of {epsilon:g} at delta {delta:g}")

    def merged(noise: float) -> _Merged:
        return _merge([*earlier, Event(noise, sampling_rate, steps)])

    def epsilon_at(noise: float) -> float:
        return _spent(merged(noise), delta).epsilon

    def quick(noise: float) -> float:
        return _overspend(_rdp(merged(noise), delta), epsilon)

    def tight(noise: float) -> float:
        # Without PLD, which is slow where there is little noise and nearly never the greater one.
        prv = _prv(merged(noise), delta)
        return _overspend(_rdp(merged(noise), delta) if prv is None else prv, epsilon)

    if quick(_MAX_NOISE) > 0 and epsilon_at(_MAX_NOISE) > epsilon:
        raise PrivacyError(
            f"epsilon {already:.3f} of {epsilon:g} is spent: no noise lets {steps} more steps stay within it"
        )
    # RDP asks for a little more noise than is needed, so the answer is near.
    enough = _MAX_NOISE if quick(_MAX_NOISE) > 0 else _root(quick, MIN_NOISE, _MAX_NOISE, 0.01)
    while tight(enough) > 0:  # an accountant's own error may exceed a tiny budget, whatever the noise
        enough *= 1.1
        if enough > 2 * _MAX_NOISE:
            raise PrivacyError(f"epsilon {epsilon:g} is below what the accountants can tell apart: give more")
    too_little = 0.9 * enough
    while too_little > MIN_NOISE and tight(too_little) <= 0:
        too_little, enough = 0.9 * too_little, too_little
    step = max(1, int(enough))  # in thousandths
    guess = _root(tight, max(too_little, MIN_NOISE), enough, step / 5000)
    thousandths = math.ceil(guess * 1000)
    while tight(thousandths / 1000) > 0 or epsilon_at(thousandths / 1000) > epsilon:
        thousandths += step
    while thousandths - step >= 1000 * MIN_NOISE and tight((thousandths - step) / 1000) <= 0:
        if epsilon_at((thousandths - step) / 1000) > epsilon:
            break
        thousandths -= step
    return thousandths / 1000


def usual_delta(units: int) -> float:
    """1 / (10 x units), rounded down to one digit: the delta of a promise that names none."""
    bound = 0.1 / units
    exponent = math.floor(math.log10(bound))
    return float(f"{math.floor(bound / 10**exponent + 1e-9)}e{exponent}")


def _overspend(spent_epsilon: float, epsilon: float) -> float:
    """Above 0 where the budget is exceeded; on this scale the accountants are nearly straight lines."""
    return math.log(min(max(spent_epsilon, 1e-6), 1e6) / epsilon)


def _root(function: Callable[[float], float], low: float, high: float, precision: float) -> float:
    """Where the falling `function` crosses 0, to `precision`; `low` where it is at most 0 already there."""
    at_low, at_high = function(low), function(high)
    if at_low <= 0:
        return low
    kept = 0  # the end that the last step left alone: -1 low, 1 high
    while high - low > precision and at_high < 0:
        # False position, in the Illinois variant: an end that stays put twice counts half.
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        middle = min(max(middle, low + precision / 4), high - precision / 4)
        value = function(middle)
        if value > 0:
            low, at_low = middle, value
            at_high = at_high / 2 if kept == 1 else at_high
            kept = 1
        else:
            high, at_high = middle, value
            at_low = at_low / 2 if kept == -1 else at_low
            kept = -1
    return high


def _check_delta(delta: float) -> None:
    if not MIN_DELTA <= delta <= GREATEST_DELTA:
        raise PrivacyError(f"delta is a number from {MIN_DELTA:g} to {GREATEST_DELTA:g}, not {delta!r}")


def _merge(history: Iterable[Event]) -> _Merged:
    """The order of a history costs nothing."""
    steps: dict[tuple[float, float], int] = {}
    for event in history:
        pair = (event.noise_multiplier, event.sampling_rate)
        steps[pair] = steps.get(pair, 0) + event.steps
    return tuple((noise, rate, count) for (noise, rate), count in sorted(steps.items()))


@lru_cache(maxsize=256)
def _spent(merged: _Merged, delta: float) -> Spent:
    if not merged:  # PRV raises
        return Spent(0.0, 0.0, 0.0, 0.0, delta)
    rdp = _rdp(merged, delta)
    prv = _prv(merged, delta) if rdp <= _TIGHT_UP_TO else None
    if prv is None:
        return Spent(rdp, None, None, rdp, delta)
    pld = _pld(merged, delta, _interval(merged))
    if pld > prv:  # a finer grid brings PLD down
        pld = min(pld, _pld(merged, delta, 1e-4))
    return Spent(max(prv, pld), prv, pld, rdp, delta)


def _rdp(merged: _Merged, delta: float) -> float:
    curve = np.sum([count * _rdp_of_step(noise, rate) for noise, rate, count in merged], axis=0)
    orders = np.array(_ORDERS)
    # Canonne, Kamath and Steinke (2020), proposition 12.
    epsilons = curve + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.min(epsilons)))


@lru_cache(maxsize=256)
def _rdp_of_step(noise: float, rate: float) -> npt.NDArray[np.float64]:
    try:
        curve = analysis("rdp").compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=_ORDERS)
    except (OverflowError, ZeroDivisionError, ValueError):  # hardly any noise
        curve = np.inf
    # An order that did not converge promises nothing.
    return np.nan_to_num(np.broadcast_to(curve, len(_ORDERS)).astype(np.float64), nan=np.inf, posinf=np.inf)


def _steps(merged: _Merged) -> int:
    return sum(count for _, _, count in merged)


def _prv_error(merged: _Merged) -> float:
    return 0.01 * math.sqrt(max(1.0, _steps(merged) / 50_000))


def _interval(merged: _Merged) -> float:
    """Of PLD's grid: its errors add up over the steps."""
    steps = _steps(merged)
    return 1e-3 if steps <= 2000 else 2e-4 if steps <= 50_000 else 1e-4


@lru_cache(maxsize=256)
def _prv(merged: _Merged, delta: float) -> float | None:
    """Opacus' upper bound, composed in one go.

    `PRVAccountant.get_epsilon` takes a grid of any length and goes back from the Fourier transform for each pair. Here
    the length is one that transforms quickly, at least as long and with the same mesh, the transforms are multiplied,
    and what bounds the losses of a single step is not worked out again: the same bound, several times as fast.
    """
    prv = analysis("prv")
    error, delta_error = _prv_error(merged), delta / 1000
    counts = [count for _, _, count in merged]
    steps = sum(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of log(0) at a sampling rate of 1, and of integrals at its far ends
        try:
            losses = [prv.PoissonSubsampledGaussianPRV(rate, noise) for noise, rate, _ in merged]
            limit = _safe_limit(merged, error, delta_error)
            mesh = error / math.sqrt(steps * math.log(12 / delta_error) / 2)
            half = _quick_length(math.ceil(limit / mesh) + 1)
            domain = prv.Domain((1 - half) * mesh, half * mesh, 2 * half)
            spectrum, shift = np.ones(half + 1, np.complex128), 0.0
            for loss, count in zip(losses, counts, strict=True):
                grid = prv.discretize(prv.TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)
                spectrum *= np.fft.rfft(grid.pmf) ** count
                shift += count * grid.domain.shifts
            # Place n of each grid stands for the loss (n + 1 - half) * mesh, and places add up modulo 2 * half.
            sums = np.roll(np.fft.irfft(spectrum), (steps - 1) * (1 - half) % (2 * half))
            composed = prv.DiscretePRV(sums, domain.shift_right(shift))
            epsilon = float(composed.compute_epsilon(delta, delta_error, error)[2])
        except (RuntimeError, ValueError, OverflowError):
            return None
    return max(0.0, epsilon) if math.isfinite(epsilon) else None


def _safe_limit(merged: _Merged, error: float, delta_error: float) -> float:
    """Where the grid may end: Opacus' `compute_safe_domain_size` (Gopi, Lee and Wutschitz 2021, remark 5.6).

    Over `_ORDERS`, which hold Opacus' and more, so that it is at most as great.
    """
    whole = _rdp(merged, delta_error / 4)
    single = [_rdp(((noise, rate, 1),), delta_error / (8 * _steps(merged))) for noise, rate, _ in merged]
    return max(whole, *single, error) + 3


def _quick_length(least: int) -> int:
    """A number from 8 to 16 times a power of two: a Fourier transform of any length may take ten times as long."""
    power = 1 << max(0, least.bit_length() - 4)
    return -(-least // power) * power


@lru_cache(maxsize=256)
def _pld(merged: _Merged, delta: float, interval: float) -> float:
    composed = [_pld_of_step(noise, rate, interval).self_compose(count) for noise, rate, count in merged]
    return float(reduce(lambda left, right: left.compose(right), composed).get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _pld_of_step(noise: float, rate: float, interval: float) -> Any:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism  # type: ignore[import-untyped]

    return from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)
