"""Privacy accounting: the epsilon that a history of mechanisms spends at a given delta.

Three accountants compute the same quantity (`bounds`), and each gives an upper bound. The reported epsilon is the
larger of PRV and PLD, which agree to 0.02; RDP is looser, fast, and shown beside them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from fedglm.privacy.accounting.bounds import (
    MergedHistory,
    choose_grid_interval,
    compute_pld_epsilon,
    compute_prv_epsilon,
    compute_prv_error,
    compute_rdp_epsilon,
    merge_history,
)
from fedglm.privacy.dp.mechanism import Event
from fedglm.privacy.errors import PrivacyError

MIN_DELTA: Final = 1e-10
MAX_DELTA: Final = 0.1
MAX_TIGHT_EPSILON: Final = 50.0
"""Above this epsilon, which promises nothing, only RDP is computed: PLD would take minutes there, and PRV overflows."""


@dataclass(frozen=True)
class EpsilonBounds:
    """Epsilon of a history by each accountant.

    Attributes:
        epsilon: The reported one: the larger of `prv` and `pld`, or `rdp` where those are None.
        prv: By privacy loss random variables; None where `rdp` is above 50 or the accountant fails.
        pld: By privacy loss distributions; None where `prv` is None.
        rdp: By Renyi differential privacy, a looser bound; infinite where there is none.
        delta: The delta of all of them.
    """

    epsilon: float
    prv: float | None
    pld: float | None
    rdp: float
    delta: float


def compute_epsilon(history: Iterable[Event], delta: float) -> EpsilonBounds:
    """Compute epsilon of the whole `history`, for one unit added or removed.

    Equal (noise multiplier, sampling rate) are merged into one entry, so a thousand rounds of one plan take as long as
    one round. An empty history spends nothing.

    Raises:
        PrivacyError: `delta` is not between 1e-10 and 0.1.
    """
    check_delta(delta)
    return compute_merged_epsilon(merge_history(history), delta)


def is_within_budget(history: Iterable[Event], epsilon: float, delta: float) -> bool:
    """Return whether `compute_epsilon(history, delta).epsilon` is at most `epsilon`.

    Well below it, a faster accountant decides: RDP, then PLD. They are upper bounds as well.

    Raises:
        PrivacyError: `delta` is not between 1e-10 and 0.1.
    """
    check_delta(delta)
    merged = merge_history(history)
    if not merged:
        return True
    # PRV may exceed the others by twice its own error.
    safe_epsilon = epsilon - 3 * compute_prv_error(merged)
    rdp = compute_rdp_epsilon(merged, delta)
    if rdp <= safe_epsilon:
        return True
    if rdp <= MAX_TIGHT_EPSILON and compute_pld_epsilon(merged, delta, choose_grid_interval(merged)) <= safe_epsilon:
        return True
    return compute_merged_epsilon(merged, delta).epsilon <= epsilon


def bound_epsilon(history: Iterable[Event], delta: float) -> float:
    """Compute epsilon of the whole `history` by PLD, or by RDP where that is above 50.

    It is faster than `compute_epsilon`, and agrees with it to 0.02.

    Raises:
        PrivacyError: `delta` is not between 1e-10 and 0.1.
    """
    check_delta(delta)
    merged = merge_history(history)
    if not merged:
        return 0.0
    rdp = compute_rdp_epsilon(merged, delta)
    return rdp if rdp > MAX_TIGHT_EPSILON else compute_pld_epsilon(merged, delta, choose_grid_interval(merged))


def choose_default_delta(units: int) -> float:
    """Return 1 / (10 x units), rounded down to one digit: the delta where the settings name none."""
    bound = 0.1 / units
    exponent = math.floor(math.log10(bound))
    return float(f"{math.floor(bound / 10**exponent + 1e-9)}e{exponent}")


def check_delta(delta: float) -> None:
    """Check the bounds of a delta.

    Raises:
        PrivacyError: `delta` is not between 1e-10 and 0.1.
    """
    if not MIN_DELTA <= delta <= MAX_DELTA:
        raise PrivacyError(f"delta is a number from {MIN_DELTA:g} to {MAX_DELTA:g}, not {delta!r}")


@lru_cache(maxsize=256)
def compute_merged_epsilon(merged: MergedHistory, delta: float) -> EpsilonBounds:
    """Compute what `compute_epsilon` returns, of a merged history."""
    if not merged:  # PRV raises
        return EpsilonBounds(0.0, 0.0, 0.0, 0.0, delta)
    rdp = compute_rdp_epsilon(merged, delta)
    prv = compute_prv_epsilon(merged, delta) if rdp <= MAX_TIGHT_EPSILON else None
    if prv is None:
        return EpsilonBounds(rdp, None, None, rdp, delta)
    pld = compute_pld_epsilon(merged, delta, choose_grid_interval(merged))
    if pld > prv:  # a finer grid lowers PLD
        pld = min(pld, compute_pld_epsilon(merged, delta, 1e-4))
    return EpsilonBounds(max(prv, pld), prv, pld, rdp, delta)
