"""Bounds on the influence of one node on a round: long updates are clipped, and outliers get a smaller share.

Bounds come from the round itself, so that they fit any model, codec and learning rate, and from medians, which one of
three or more nodes cannot move out of the others' range:

1. An update whose norm exceeds `factor` times the median norm is scaled down to that; a value beyond `factor` times the
   median of the updates' largest magnitudes is clipped to that, because a few large values can do harm that the norm
   does not show.
2. An update that opposes the sum of the others gets a smaller share. It does where the cosine between the two is
   negative, by more than chance and by more than the nodes differ: below zero by `_CHANCE` standard deviations under
   random signs, and below the median of the cosines by `_SPREAD` times their median absolute deviation.
3. Where nodes add noise, which hides what they have in common, so does an update that continues in the direction of the
   last rounds' means although the others do not: honest noise is drawn anew each round, and only a node that pushes in
   the same direction round after round aligns with those means.

Nothing depends on the order of arrival. With fewer than three updates nothing is bounded: of two, neither can be
recognised as the outlier.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.compression.codec import Update
from fedglm.compression.updates import DenseUpdate, SparseUpdate

MIN_UPDATES: Final = 3
"""Minimum number of updates for a meaningful median."""

_CHANCE: Final = 4.0
_SPREAD: Final = 5.0
_MEMORY: Final = np.float32(0.8)
"""Decay of the direction of the last rounds, per round."""
_SHARES: Final = 2.0**20
"""Shares are multiples of its inverse, as public weights are, so that sums of weights are exact."""
_CHUNK: Final = 1 << 16

Reference: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class Limits:
    """Limits of a round's updates.

    Attributes:
        norm: Maximum Euclidean norm of an update.
        value: Maximum magnitude of a value.
    """

    norm: float
    value: float

    def clip(self, update: Update) -> Update:
        """Return the update within the limits; the same object where it is within them already."""
        norm = update.norm()
        scale = min(1.0, self.norm / norm) if norm else 1.0
        if scale == 1.0 and update.max_abs() <= self.value:
            return update
        max_abs = np.float32(min(self.value, float(np.finfo(np.float32).max)))

        def clip_values(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            clipped: npt.NDArray[np.float32] = np.clip(values * np.float32(scale), -max_abs, max_abs)
            return clipped

        if isinstance(update, SparseUpdate):
            return SparseUpdate(update.size, update.positions, clip_values(update.values))
        return DenseUpdate(clip_values(update.to_dense()))


@dataclass(frozen=True)
class Cosine:
    """Cosine between an update and another vector.

    Attributes:
        value: Cosine, from -1 to 1; 0 where one of the two is zero.
        std: Standard deviation that it would have if the signs of the products were random.
    """

    value: float
    std: float


def compute_limits(norms: Sequence[float], max_values: Sequence[float], factor: float) -> Limits | None:
    """Compute the limits of a round.

    Args:
        norms: Norms of its updates.
        max_values: Largest magnitude in each of them.
        factor: Limits over the medians.

    Returns:
        Limits; None for too few updates, or where most are zero.
    """
    if len(norms) < MIN_UPDATES or not median(norms) > 0:
        return None
    return Limits(factor * median(norms), factor * median(max_values))


def compute_cosine_with_others(
    update: Update, weight: float, total: npt.NDArray[np.int64], unit: float, squared_norm: float
) -> Cosine:
    """Compute the cosine between an update and the weighted sum of the others.

    Args:
        update: One of the updates in the sum.
        weight: Weight of the update in the sum.
        total: Fixed-point sum, this update included, shape (n,), int64.
        unit: Value of 1 in `total`.
        squared_norm: Squared norm of `total`, in squared units.
    """
    dots, squares, variances = [], [], []
    for index, values in _iterate_chunks(update):
        own = values * weight
        sums = total[index] * unit
        dots.append(float((values * sums).sum()))
        squares.append(float((values * values).sum()))
        variances.append(float(((values * (sums - own)) ** 2).sum()))
    dot, square = math.fsum(dots), math.fsum(squares)
    square_of_others = squared_norm * unit**2 - 2 * weight * dot + weight**2 * square
    return _normalize(dot - weight * square, math.fsum(variances), square * max(0.0, square_of_others))


def compute_cosine(update: Update, direction: npt.NDArray[np.float32]) -> Cosine:
    """Compute the cosine between an update and a direction of shape (n,), float32."""
    dots, squares, variances = [], [], []
    for index, values in _iterate_chunks(update):
        other = direction[index].astype(np.float64)
        dots.append(float((values * other).sum()))
        squares.append(float((values * values).sum()))
        variances.append(float(((values * other) ** 2).sum()))
    return _normalize(math.fsum(dots), math.fsum(variances), math.fsum(squares) * compute_squared_norm(direction))


def compute_squared_norm(vector: Reference) -> float:
    """Compute the sum of squares of a vector of shape (n,), in float64."""
    chunks = (vector[start : start + _CHUNK].astype(np.float64) for start in range(0, len(vector), _CHUNK))
    return math.fsum(float((chunk * chunk).sum()) for chunk in chunks)


def compute_shares(with_others: Sequence[Cosine], with_drift: Sequence[Cosine] | None = None) -> list[float]:
    """Compute the share with which each update enters the mean, from 1 down to 0 for the strongest outliers.

    Args:
        with_others: Cosine of each update with the sum of the others.
        with_drift: Cosine of each update with the direction of the last rounds; None where that is not checked.
    """
    if len(with_others) < MIN_UPDATES:
        return [1.0] * len(with_others)
    scores = _score_negative(with_others)
    if with_drift is not None and median(c.value for c in with_drift) <= median(_CHANCE * c.std for c in with_drift):
        aligned = _score_negative([Cosine(-cosine.value, cosine.std) for cosine in with_drift])
        scores = [max(pair) for pair in zip(scores, aligned, strict=True)]
    shares = [math.floor(min(1.0, max(0.0, 2.0 - score)) * _SHARES) / _SHARES for score in scores]
    # Half of the nodes cannot be outliers: then the scores compare nodes that have nothing in common.
    return shares if 2 * sum(shares) > len(shares) else [1.0] * len(shares)


class Drift:
    """The direction in which the model moved in the last rounds.

    Args:
        direction: Decayed sum of the last means, shape (n,), float32; None before the first round.

    Attributes:
        direction: As above.
    """

    def __init__(self, direction: npt.NDArray[np.float32] | None = None) -> None:
        self.direction = direction

    def update(self, mean: npt.NDArray[np.float32]) -> None:
        """Add the mean of a round, shape (n,), float32."""
        self.direction = mean.copy() if self.direction is None else _MEMORY * self.direction + mean


def _score_negative(cosines: Sequence[Cosine]) -> list[float]:
    """Score how far each cosine is below zero and below the others, in units of the tolerance; 0 where it is not."""
    center = median(cosine.value for cosine in cosines)
    spread = _SPREAD * median(abs(cosine.value - center) for cosine in cosines)
    scores = []
    for cosine in cosines:
        chance = _CHANCE * cosine.std
        if cosine.value >= 0 or not chance:
            scores.append(0.0)
            continue
        scores.append(min(-cosine.value / chance, (center - cosine.value) / max(spread, chance)))
    return scores


def _normalize(dot: float, variance: float, squares: float) -> Cosine:
    """Make a cosine from an inner product, its variance under random signs, and the product of both squared norms."""
    if not squares > 0:
        return Cosine(0.0, 0.0)
    return Cosine(dot / math.sqrt(squares), math.sqrt(variance / squares))


def _iterate_chunks(update: Update) -> Iterator[tuple[npt.NDArray[np.int64] | slice, npt.NDArray[np.float64]]]:
    """Yield positions and values (float64) of an update, a bounded number at a time."""
    if isinstance(update, SparseUpdate):
        for start in range(0, len(update.values), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            yield update.positions[chunk], update.values[chunk].astype(np.float64)
        return
    values = update.values if isinstance(update, DenseUpdate) else update.to_dense()
    for start in range(0, update.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        yield chunk, values[chunk].astype(np.float64)
