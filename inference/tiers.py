"""Tiers of one model by a latency budget: the best quality whose predicted latency, corrected by measured ones, fits.

A latency table is made once, on a device that did nothing else. How slow the device is now is learned from answers as
they come: the logarithm of measured over predicted is split into a part that all tiers share (the device's load,
followed fast) and one for each tier (the table's error, learned slowly), both by exponential smoothing. So the load
that a cheap tier sees also says whether a better one would fit again, and a tier that the table flatters is tried less
and less.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from fedglm.inference.errors import InferenceError

LOAD_WEIGHT: Final = 0.2
"""Weight of one measurement in the load: after five, two thirds of a change are seen."""
ERROR_WEIGHT: Final = 0.02
"""Weight of one measurement in a tier's own error: a tenth of the former, so that load is not taken for error."""


@dataclass(frozen=True, kw_only=True)
class Tier:
    """One format or release of a model.

    Attributes:
        name: Its name, such as ``int4``.
        quality: Its quality; greater is better: an accuracy, or minus a loss.
        predicted_ms: Latency of a usual answer by the latency table, in ms.
    """

    name: str
    quality: float
    predicted_ms: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The tier to use now.

    Attributes:
        tier: The tier.
        expected_ms: Its latency as now expected, in ms.
        fits: Whether that is within the budget.
        reason: Why it was chosen, as a sentence.
    """

    tier: Tier
    expected_ms: float
    fits: bool
    reason: str


class TierChooser:
    """Chooses the tier of the next answer; safe for threads.

    A tier is left as soon as its expected latency exceeds the budget. A better one is taken only where it would fit
    with `margin` to spare and `patience` answers have been measured since the last change (hysteresis), so that noise
    does not make it go back and forth.

    Args:
        tiers: The tiers, at least one, of different names.
        budget_ms: Latency that an answer may take, in ms.
        margin: Share of the budget that must be left before a better tier is taken, within 0 to 1.
        patience: Number of measured answers between a change and the next to a better tier.

    Raises:
        InferenceError: There is no tier, a name occurs twice, or a number is out of range.
    """

    def __init__(self, tiers: Sequence[Tier], *, budget_ms: float, margin: float = 0.15, patience: int = 20) -> None:
        if not tiers or len({tier.name for tier in tiers}) < len(tiers):
            raise InferenceError("a choice needs at least one tier, each with a name of its own")
        for tier in tiers:
            if not (0 < tier.predicted_ms < math.inf and math.isfinite(tier.quality)):
                raise InferenceError(f"tier {tier.name} is predicted to take {tier.predicted_ms} ms at {tier.quality}")
        if not (budget_ms > 0 and 0 <= margin < 1 and patience >= 0):
            raise InferenceError("a latency budget is above 0 ms, its margin within 0 to 1, the patience not negative")
        # Best first; of equal quality the faster.
        self._tiers = sorted(tiers, key=lambda tier: (-tier.quality, tier.predicted_ms))
        self._budget_ms, self._margin, self._patience = budget_ms, margin, patience
        self._lock = threading.Lock()
        self._load = 0.0
        self._errors = {tier.name: 0.0 for tier in tiers}
        self._measured = 0  # answers since the last change
        self._current = self._best(self._budget_ms) or self._fastest()

    def choose(self) -> Choice:
        """Choose the tier for the next answer."""
        with self._lock:
            kept = self._current
            if self._expect(kept) > self._budget_ms:
                self._change(self._best(self._budget_ms) or self._fastest())
            elif self._measured >= self._patience:
                better = self._best(self._budget_ms * (1 - self._margin))
                if better is not None and better.quality > kept.quality:
                    self._change(better)
            return self._explain(kept)

    def record(self, name: str, measured_ms: float) -> None:
        """Learn from an answer.

        Args:
            name: Name of the tier that gave it.
            measured_ms: Its latency, in ms.

        Raises:
            InferenceError: No tier has that name, or the latency is not positive and finite.
        """
        if not 0 < measured_ms < math.inf:
            raise InferenceError(f"an answer is said to have taken {measured_ms} ms")
        with self._lock:
            tier = next((tier for tier in self._tiers if tier.name == name), None)
            if tier is None:
                raise InferenceError(f"no tier is called {name!r}: {', '.join(self._errors)}")
            surprise = math.log(measured_ms / self._expect(tier))
            self._load += LOAD_WEIGHT * surprise
            self._errors[name] += ERROR_WEIGHT * surprise
            self._measured += 1

    def expected_ms(self) -> dict[str, float]:
        """Return the latency of each tier as now expected, in ms, the best tier first."""
        with self._lock:
            return {tier.name: self._expect(tier) for tier in self._tiers}

    def _expect(self, tier: Tier) -> float:
        return tier.predicted_ms * math.exp(self._load + self._errors[tier.name])

    def _best(self, limit_ms: float) -> Tier | None:
        return next((tier for tier in self._tiers if self._expect(tier) <= limit_ms), None)

    def _fastest(self) -> Tier:
        return min(self._tiers, key=self._expect)

    def _change(self, tier: Tier) -> None:
        if tier is not self._current:
            self._current, self._measured = tier, 0

    def _explain(self, kept: Tier) -> Choice:
        tier, budget = self._current, f"{self._budget_ms:g} ms"
        expected = self._expect(tier)
        fits = expected <= self._budget_ms
        better = [other for other in self._tiers if other.quality > tier.quality]
        if not fits:
            reason = f"no tier fits {budget}; {tier.name} is the fastest, at {expected:.3g} ms"
        elif tier is not kept and tier.quality < kept.quality:
            reason = (
                f"{kept.name} now takes {self._expect(kept):.3g} ms of {budget}; {tier.name} takes {expected:.3g} ms"
            )
        elif not better:
            reason = f"{tier.name} is the best, and fits {budget} at {expected:.3g} ms"
        else:
            next_up = min(better, key=self._expect)
            reason = (
                f"{tier.name} is the best that fits {budget}, at {expected:.3g} ms;"
                f" {next_up.name} would take {self._expect(next_up):.3g} ms"
            )
        return Choice(tier=tier, expected_ms=expected, fits=fits, reason=reason)
