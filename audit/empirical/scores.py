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
    """What an attack achieves.

    Attributes:
        value: Probability that one of the kind that is looked for scores above one that is not, ties counting half.
        low: Lower end of the 95 % confidence interval.
        high: Upper end.
    """

    value: float
    low: float
    high: float


def auc(scores: npt.ArrayLike, truth: npt.ArrayLike) -> Auc:
    """The area for one set of scores; the interval after DeLong, DeLong and Clarke-Pearson (1988).

    Args:
        scores: (n,) finite numbers.
        truth: (n,) bool, which are of the kind that is looked for.

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
    whole = rankdata(np.concatenate([first, second]))
    above = (whole[: len(first)] - rankdata(first)) / len(second)
    below = 1 - (whole[len(first) :] - rankdata(second)) / len(first)
    value = float(above.mean())
    spread = math.sqrt(float(above.var(ddof=1)) / len(first) + float(below.var(ddof=1)) / len(second))
    return Auc(value, max(0.0, value - _NORMAL_95 * spread), min(1.0, value + _NORMAL_95 * spread))


def mean_auc(found: list[Auc]) -> Auc:
    """The mean of independent areas, as of several sites, with its interval."""
    value = float(np.mean([one.value for one in found]))
    spreads = [max(one.high - one.value, one.value - one.low) for one in found]
    half = math.sqrt(sum(spread**2 for spread in spreads)) / len(found)
    return Auc(value, max(0.0, value - half), min(1.0, value + half))


def likelihood_ratios(scores: npt.ArrayLike, shadows: npt.ArrayLike, inside: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """How much likelier each score is with its record in the training than without, after shadow models.

    After LiRA (Carlini et al. 2022, arXiv 2112.03570), with one normal spread for all records, as few shadows allow.

    Args:
        scores: (n,) of the attacked update.
        shadows: (k, n) of shadow updates.
        inside: (k, n) bool, which records each shadow was trained on; each record in some and out of some.

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
