"""How well an attack tells two kinds apart: the area under the ROC curve, with its confidence interval."""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata  # type: ignore[import-untyped]

from fedglm.privacy.errors import PrivacyError

_NORMAL_95: Final = 1.96


@dataclass(frozen=True)
class Auc:
    """Area under the ROC curve that an attack achieves.

    Attributes:
        value: Probability that one of the wanted kind scores above one of the other kind, where ties count half.
        low: Lower end of the 95 % confidence interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float


def compute_auc(scores: npt.ArrayLike, truth: npt.ArrayLike) -> Auc:
    """Compute the area for one set of scores, with an interval after DeLong, DeLong and Clarke-Pearson (1988).

    Args:
        scores: (n,) finite numbers.
        truth: (n,) bool, which are of the wanted kind.

    Raises:
        PrivacyError: The shapes differ, a score is not finite, or one kind has fewer than two.
    """
    values, kinds = np.asarray(scores, np.float64), np.asarray(truth)
    if values.ndim != 1 or kinds.shape != values.shape or kinds.dtype != bool or not np.isfinite(values).all():
        raise PrivacyError("an attack is scored by as many finite numbers as truths")
    first, second = values[kinds], values[~kinds]
    if min(len(first), len(second)) < 2:
        raise PrivacyError("an attack needs two of each kind to be told apart")
    # For each one, the share of the other kind that it scores above (V10 and V01 of the paper), by midranks.
    ranks = rankdata(np.concatenate([first, second]))
    above = (ranks[: len(first)] - rankdata(first)) / len(second)
    below = 1 - (ranks[len(first) :] - rankdata(second)) / len(first)
    value = float(above.mean())
    standard_error = math.sqrt(float(above.var(ddof=1)) / len(first) + float(below.var(ddof=1)) / len(second))
    return Auc(value, max(0.0, value - _NORMAL_95 * standard_error), min(1.0, value + _NORMAL_95 * standard_error))


def average_auc(areas: list[Auc]) -> Auc:
    """Average independent areas, such as those of several sites, with the interval of their mean."""
    value = float(np.mean([one.value for one in areas]))
    spreads = [max(one.high - one.value, one.value - one.low) for one in areas]
    half = math.sqrt(sum(spread**2 for spread in spreads)) / len(areas)
    return Auc(value, max(0.0, value - half), min(1.0, value + half))


def compute_likelihood_ratios(
    scores: npt.ArrayLike, shadows: npt.ArrayLike, inside: npt.ArrayLike
) -> npt.NDArray[np.float64]:
    """Compute how much likelier each score is if its record was trained on than if not, by shadow models.

    After LiRA (Carlini et al. 2022, arXiv 2112.03570), with one standard deviation for all records, as few shadows
    require.

    Args:
        scores: (n,) scores of the attacked update.
        shadows: (k, n) scores of shadow updates.
        inside: (k, n) bool, which records each shadow was trained on; each record is in some and out of some.

    Returns:
        (n,) float64 log-likelihood ratios, up to a constant factor.

    Raises:
        PrivacyError: A record was in all shadows, or in none.
    """
    values, known, members = np.asarray(scores), np.asarray(shadows), np.asarray(inside, bool)
    counts = members.sum(axis=0)
    if counts.min() < 1 or counts.max() >= len(members):
        raise PrivacyError("each record must be in some shadows and out of some")
    means_in = np.where(members, known, 0).sum(axis=0) / counts
    means_out = np.where(members, 0, known).sum(axis=0) / (len(members) - counts)
    spread = np.where(members, known - means_in, known - means_out).std() + 1e-30
    ratios = ((values - means_out) ** 2 - (values - means_in) ** 2) / (2 * spread**2)
    return np.asarray(ratios, np.float64)
