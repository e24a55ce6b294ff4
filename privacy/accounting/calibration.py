"""The least noise with which a budget lasts."""

import math
from collections.abc import Callable, Iterable
from typing import Final

from fedglm.privacy.accounting.accountant import TIGHT_UP_TO, check_delta, spent_by
from fedglm.privacy.accounting.bounds import Merged, merge, prv, rdp
from fedglm.privacy.dp.mechanism import Event
from fedglm.privacy.errors import PrivacyError

MIN_NOISE: Final = 0.1
"""`calibrate` returns no smaller noise multiplier, whatever the budget."""

_MAX_NOISE: Final = 10_000.0


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
    check_delta(delta)
    if not 0 < epsilon <= TIGHT_UP_TO:
        raise PrivacyError(f"epsilon is a number above 0 and at most {TIGHT_UP_TO:g}, not {epsilon!r}")
    earlier = list(history)
    already = spent_by(merge(earlier), delta).epsilon
    if already > epsilon:
        raise PrivacyError(f"the budget is spent: epsilon {already:.3f} of {epsilon:g} at delta {delta:g}")

    def merged(noise: float) -> Merged:
        return merge([*earlier, Event(noise, sampling_rate, steps)])

    def epsilon_at(noise: float) -> float:
        return spent_by(merged(noise), delta).epsilon

    def quick(noise: float) -> float:
        return _overspend(rdp(merged(noise), delta), epsilon)

    def tight(noise: float) -> float:
        # Without PLD, which is slow where there is little noise and nearly never the greater one.
        bound = prv(merged(noise), delta)
        return _overspend(rdp(merged(noise), delta) if bound is None else bound, epsilon)

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


def _overspend(spent_epsilon: float, epsilon: float) -> float:
    """Above 0 where the budget is exceeded; on this scale the accountants are nearly straight lines."""
    return math.log(min(max(spent_epsilon, 1e-6), 1e6) / epsilon)


def _root(function: Callable[[float], float], low: float, high: float, precision: float) -> float:
    """Where the falling `function` crosses 0, to `precision` and from above; `low` where it is at most 0 already there.

    scipy's `brentq` may stop on either side, and elsewhere within the precision: above 2, where answers lie steps of
    0.1 % from where this one stops, it would give plans other noise than they had.
    """
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
