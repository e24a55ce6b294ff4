"""Calibration: the smallest noise multiplier that keeps a number of steps within a privacy budget."""

import math
from collections.abc import Callable, Iterable
from typing import Final

from fedglm.privacy.accounting.accountant import MAX_TIGHT_EPSILON, check_delta, compute_merged_epsilon
from fedglm.privacy.accounting.bounds import MergedHistory, compute_prv_epsilon, compute_rdp_epsilon, merge_history
from fedglm.privacy.dp.mechanism import Event
from fedglm.privacy.errors import PrivacyError

MIN_NOISE: Final = 0.1
"""`calibrate` returns no smaller noise multiplier, whatever the budget."""

_MAX_NOISE: Final = 10_000.0


def calibrate(epsilon: float, delta: float, sampling_rate: float, steps: int, history: Iterable[Event] = ()) -> float:
    """Compute the smallest noise multiplier with which `steps` further steps stay within the budget.

    Args:
        epsilon: Epsilon of the budget, above 0 and at most 50.
        delta: Delta of the budget.
        sampling_rate: Probability of each unit to be in a step's sample.
        steps: Number of planned steps over all rounds.
        history: Earlier mechanisms on the same data.

    Returns:
        The noise multiplier, smallest to 0.001 (above 2, to 0.1 %): a multiple of 0.001, and at least 0.1 even where
        less would be enough.

    Raises:
        PrivacyError: No noise is enough (the history alone may exceed the budget), or an argument is out of bounds.
    """
    check_delta(delta)
    if not 0 < epsilon <= MAX_TIGHT_EPSILON:
        raise PrivacyError(f"epsilon is a number above 0 and at most {MAX_TIGHT_EPSILON:g}, not {epsilon!r}")
    earlier = list(history)
    spent_epsilon = compute_merged_epsilon(merge_history(earlier), delta).epsilon
    if spent_epsilon > epsilon:
        raise PrivacyError(f"the budget is spent: epsilon {spent_epsilon:.3f} of {epsilon:g} at delta {delta:g}")

    def add_steps(noise: float) -> MergedHistory:
        return merge_history([*earlier, Event(noise, sampling_rate, steps)])

    def epsilon_at(noise: float) -> float:
        return compute_merged_epsilon(add_steps(noise), delta).epsilon

    def overspend_by_rdp(noise: float) -> float:
        return _overspend(compute_rdp_epsilon(add_steps(noise), delta), epsilon)

    def overspend_by_prv(noise: float) -> float:
        # Without PLD, which is slow where there is little noise and nearly never the larger one.
        bound = compute_prv_epsilon(add_steps(noise), delta)
        return _overspend(compute_rdp_epsilon(add_steps(noise), delta) if bound is None else bound, epsilon)

    if overspend_by_rdp(_MAX_NOISE) > 0 and epsilon_at(_MAX_NOISE) > epsilon:
        raise PrivacyError(
            f"epsilon {spent_epsilon:.3f} of {epsilon:g} is spent: no noise lets {steps} more steps stay within it"
        )
    # RDP needs slightly more noise than the tight accountants, so the result is close.
    if overspend_by_rdp(_MAX_NOISE) > 0:
        enough = _MAX_NOISE
    else:
        enough = _find_root(overspend_by_rdp, MIN_NOISE, _MAX_NOISE, 0.01)
    while overspend_by_prv(enough) > 0:  # an accountant's own error may exceed a tiny budget, whatever the noise
        enough *= 1.1
        if enough > 2 * _MAX_NOISE:
            raise PrivacyError(f"epsilon {epsilon:g} is below what the accountants can tell apart: give more")
    too_little = 0.9 * enough
    while too_little > MIN_NOISE and overspend_by_prv(too_little) <= 0:
        too_little, enough = 0.9 * too_little, too_little
    step = max(1, int(enough))  # in thousandths
    estimate = _find_root(overspend_by_prv, max(too_little, MIN_NOISE), enough, step / 5000)
    thousandths = math.ceil(estimate * 1000)
    while overspend_by_prv(thousandths / 1000) > 0 or epsilon_at(thousandths / 1000) > epsilon:
        thousandths += step
    while thousandths - step >= 1000 * MIN_NOISE and overspend_by_prv((thousandths - step) / 1000) <= 0:
        if epsilon_at((thousandths - step) / 1000) > epsilon:
            break
        thousandths -= step
    return thousandths / 1000


def _overspend(spent_epsilon: float, epsilon: float) -> float:
    """Return the logarithm of spent over permitted epsilon, above 0 where the budget is exceeded.

    As a function of the noise the accountants are nearly linear on this scale.
    """
    return math.log(min(max(spent_epsilon, 1e-6), 1e6) / epsilon)


def _find_root(function: Callable[[float], float], low: float, high: float, precision: float) -> float:
    """Find the root of a decreasing function to `precision`, from above; `low` where the function is at most 0 there.

    scipy's `brentq` may stop on either side of the root, and elsewhere within the precision: above 2, where results are
    in steps of 0.1 % from where this one stops, it would give plans other noise than they had.
    """
    at_low, at_high = function(low), function(high)
    if at_low <= 0:
        return low
    kept = 0  # the end that the last step did not move: -1 low, 1 high
    while high - low > precision and at_high < 0:
        # False position, in the Illinois variant: an end that is kept twice counts half.
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
