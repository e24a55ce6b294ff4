"""At which entropy a prediction goes to the larger model, set on public examples.

Two ways: as few go up as an agreement with the larger model allows, or as many as a budget allows. A small model's
entropies are no probabilities of error; what a threshold gives is therefore measured, on public examples.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.cascade.entropy import normalized_entropy
from fedglm.inference.errors import InferenceError

CANDIDATES: Final = (0.0, *np.geomspace(2**-20, 1, 321).tolist())
"""Thresholds that are tried, 4.4 % apart: chosen before the examples are seen, as the test of an agreement requires."""


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold, and what it gave on the examples it was set on.

    Attributes:
        entropy: Predictions of greater normalized entropy go up; below 0 all do, at 1 none.
        share_up: Share of the examples that go up.
        agreement: Share of the examples on which the cascade answers as the larger model alone.
        agreement_at_least: Lower bound of the agreement on other examples of the same kind, at `confidence`.
        confidence: Confidence of that bound, one-sided.
        examples: Number of examples.
    """

    entropy: float
    share_up: float
    agreement: float
    agreement_at_least: float
    confidence: float
    examples: int


def threshold_for_agreement(
    small: npt.ArrayLike, large: npt.ArrayLike, *, agreement: float, confidence: float = 0.95
) -> Threshold:
    """Return the threshold at which the fewest go up while the cascade agrees with the larger model as often as asked.

    The agreement holds on other examples of the same kind with the confidence given: thresholds are tried from the
    strictest up, each by the exact binomial test, until the first that fails (fixed-sequence testing; Learn then Test,
    Angelopoulos et al., arXiv:2110.01052, section 2.2), so that trying many costs no confidence. Where too few examples
    are given to be sure of anything, all go up.

    Args:
        small: Probabilities by the small model, (n, C).
        large: Probabilities by the larger one on the same examples, (n, C).
        agreement: Share of the answers to be the larger model's, within 0 to 1.
        confidence: Confidence that it is, at least 0.5 and below 1.

    Raises:
        InferenceError: The probabilities do not belong together, or a share is out of range.
    """
    if not (0 <= agreement <= 1 and 0.5 <= confidence < 1):
        raise InferenceError("an agreement is within 0 to 1, a confidence at least 0.5 and below 1")
    entropies, differs = _compare(small, large)
    count = len(differs)
    needed = bisect_left(range(count + 1), agreement, key=lambda agreeing: _lower_bound(agreeing, count, confidence))
    wrong = np.sort(entropies[differs])  # those that answer otherwise, if they stay
    passing = takewhile(lambda candidate: count - np.searchsorted(wrong, candidate, "right") >= needed, CANDIDATES)
    chosen = max(passing, default=-1.0)
    return _describe(chosen, entropies, differs, confidence)


def threshold_for_budget(
    small: npt.ArrayLike, large: npt.ArrayLike, *, share_up: float, confidence: float = 0.95
) -> Threshold:
    """Return the threshold at which as many of the examples go up as a budget allows, the least sure first.

    Args:
        small: Probabilities by the small model, (n, C).
        large: Probabilities by the larger one on the same examples, (n, C).
        share_up: Share of the examples that may go up, within 0 to 1; for a mean latency of L ms it is
            (L - small model's ms) / larger model's ms.
        confidence: Confidence of the bound on the agreement.

    Raises:
        InferenceError: The probabilities do not belong together, or a share is out of range.
    """
    if not (0 <= share_up <= 1 and 0.5 <= confidence < 1):
        raise InferenceError("a share that may go up is within 0 to 1, a confidence at least 0.5 and below 1")
    entropies, differs = _compare(small, large)
    allowed = int(share_up * len(entropies))
    # The first that stays is the threshold: with its equals it stays, so that no more go up than may.
    entropy = -1.0 if allowed == len(entropies) else float(np.sort(entropies)[len(entropies) - 1 - allowed])
    return _describe(entropy, entropies, differs, confidence)


def _compare(small: npt.ArrayLike, large: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the small model's entropies and where its answers differ from the larger one's."""
    one, other = np.asarray(small), np.asarray(large)
    if one.shape != other.shape or len(one) == 0:
        raise InferenceError(
            f"a threshold is set on the same examples by both models, not {one.shape} and {other.shape}"
        )
    entropies = normalized_entropy(one)
    normalized_entropy(other)  # it too must be probabilities
    return entropies, one.argmax(axis=1) != other.argmax(axis=1)


def _describe(
    entropy: float, entropies: npt.NDArray[np.float64], differs: npt.NDArray[np.bool_], confidence: float
) -> Threshold:
    count = len(differs)
    agreeing = count - int((differs & (entropies <= entropy)).sum())
    return Threshold(
        entropy=entropy,
        share_up=float((entropies > entropy).mean()),
        agreement=agreeing / count,
        agreement_at_least=_lower_bound(agreeing, count, confidence) if entropy >= 0 else 1.0,
        confidence=confidence,
        examples=count,
    )


def _lower_bound(successes: int, trials: int, confidence: float) -> float:
    """Return the one-sided Clopper-Pearson lower bound of a share (Biometrika 26, 1934)."""
    # Imported here: a node that only predicts does without.
    from scipy.special import betaincinv  # type: ignore[import-untyped]

    return float(betaincinv(successes, trials - successes + 1, 1 - confidence)) if successes else 0.0
