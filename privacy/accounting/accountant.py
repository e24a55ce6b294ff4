"""What a history of mechanisms spends: epsilon at a given delta.

Three accountants compute the same (`bounds`), and each gives an upper bound. The headline is the greater of PRV and
PLD, which agree to 0.02; RDP is looser, quick, and shown beside them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from fedglm.privacy.accounting.bounds import Merged, interval, merge, pld, prv, prv_error, rdp
from fedglm.privacy.dp.mechanism import Event
from fedglm.privacy.errors import PrivacyError

MIN_DELTA: Final = 1e-10
GREATEST_DELTA: Final = 0.1
TIGHT_UP_TO: Final = 50.0
"""Above this epsilon, which promises nothing, RDP is told alone: PLD would take minutes there, and PRV overflows."""


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
    check_delta(delta)
    return spent_by(merge(history), delta)


def within(history: Iterable[Event], epsilon: float, delta: float) -> bool:
    """Whether `spent(history, delta).epsilon` is at most `epsilon`.

    Below it, the quicker accountants say so: RDP, then PLD. Theirs are upper bounds as well.

    Raises:
        PrivacyError: `delta` is not between 1e-10 and 0.1.
    """
    check_delta(delta)
    merged = merge(history)
    if not merged:
        return True
    # PRV may lie above the others, by twice its own error.
    room = epsilon - 3 * prv_error(merged)
    loose = rdp(merged, delta)
    if loose <= room or (loose <= TIGHT_UP_TO and pld(merged, delta, interval(merged)) <= room):
        return True
    return spent_by(merged, delta).epsilon <= epsilon


def upper_bound(history: Iterable[Event], delta: float) -> float:
    """Epsilon of all of `history` by PLD, or by RDP where that is above 50: quicker than `spent`, and as near to 0.02.

    Raises:
        PrivacyError: `delta` is not between 1e-10 and 0.1.
    """
    check_delta(delta)
    merged = merge(history)
    if not merged:
        return 0.0
    loose = rdp(merged, delta)
    return loose if loose > TIGHT_UP_TO else pld(merged, delta, interval(merged))


def usual_delta(units: int) -> float:
    """1 / (10 x units), rounded down to one digit: the delta of a promise that names none."""
    bound = 0.1 / units
    exponent = math.floor(math.log10(bound))
    return float(f"{math.floor(bound / 10**exponent + 1e-9)}e{exponent}")


def check_delta(delta: float) -> None:
    """Raises PrivacyError where a delta is out of its bounds."""
    if not MIN_DELTA <= delta <= GREATEST_DELTA:
        raise PrivacyError(f"delta is a number from {MIN_DELTA:g} to {GREATEST_DELTA:g}, not {delta!r}")


@lru_cache(maxsize=256)
def spent_by(merged: Merged, delta: float) -> Spent:
    """What `spent` says, of a history that is merged."""
    if not merged:  # PRV raises
        return Spent(0.0, 0.0, 0.0, 0.0, delta)
    loose = rdp(merged, delta)
    tight = prv(merged, delta) if loose <= TIGHT_UP_TO else None
    if tight is None:
        return Spent(loose, None, None, loose, delta)
    other = pld(merged, delta, interval(merged))
    if other > tight:  # a finer grid brings PLD down
        other = min(other, pld(merged, delta, 1e-4))
    return Spent(max(tight, other), tight, other, loose, delta)
