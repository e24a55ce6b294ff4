"""What one node can do to the model of a round, bounded: long updates are cut, and odd ones count for less.

Bounds come from the round itself, so that they fit any model, codec and learning rate, and from medians, which one of
three or more nodes cannot move out of the others' range:

1. An update longer than `factor` times the median of the norms is scaled down to that; a value beyond `factor` times
   the median of the greatest values is cut to that, for a few values can do what their norm does not show.
2. An update that pulls against the sum of the others counts for less. It does where the cosine between the two is
   negative, by more than chance and by more than the nodes differ: below zero by `_CHANCE` standard deviations of what
   random signs would give, and below the median of the cosines by `_SPREAD` times their median deviation.
3. Where nodes add noise, which hides what they have in common, so does an update that goes on in the direction of the
   last rounds' means although the others do not: honest noise is fresh, and only a node that pushes for the same thing
   round after round finds itself there.

Nothing depends on the order in which updates arrived. With fewer than three updates nothing is bounded: of two, nobody
can say which is odd.
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

FEWEST: Final = 3
"""Updates of which a median says something."""

_CHANCE: Final = 4.0
_SPREAD: Final = 5.0
_MEMORY: Final = np.float32(0.8)
"""Of the direction of the last rounds, what is left of it a round later."""
_SHARES: Final = 2.0**20
"""Shares are multiples of its inverse, as public weights are, so that sums of weights are exact."""
_CHUNK: Final = 1 << 16

Reference: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float32]


@dataclass(frozen=True)
class Limits:
    """Of a round.

    Attributes:
        norm: Greatest norm of an update.
        value: Greatest magnitude of a value.
    """

    norm: float
    value: float

    def cut(self, update: Update) -> Update:
        """The update within the limits; itself where it is."""
        norm = update.norm()
        scale = min(1.0, self.norm / norm) if norm else 1.0
        if scale == 1.0 and update.max_abs() <= self.value:
            return update
        greatest = np.float32(min(self.value, float(np.finfo(np.float32).max)))

        def within(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            cut: npt.NDArray[np.float32] = np.clip(values * np.float32(scale), -greatest, greatest)
            return cut

        if isinstance(update, SparseUpdate):
            return SparseUpdate(update.size, update.positions, within(update.values))
        return DenseUpdate(within(update.to_dense()))


@dataclass(frozen=True)
class Cosine:
    """Between an update and something else.

    Attributes:
        value: From -1 to 1; 0 where one of them is nothing.
        chance: Standard deviation that it would have if signs were random.
    """

    value: float
    chance: float


def limits_of(norms: Sequence[float], greatest: Sequence[float], factor: float) -> Limits | None:
    """The limits of a round, from the norms and the greatest magnitudes of its updates; None where there are none."""
    if len(norms) < FEWEST or not median(norms) > 0:
        return None
    return Limits(factor * median(norms), factor * median(greatest))


def cosine_with_rest(update: Update, weight: float, total: npt.NDArray[np.int64], unit: float, square: float) -> Cosine:
    """Between an update and the weighted sum of the others.

    Args:
        update: One of those in the sum.
        weight: That it has there.
        total: The sum in fixed point, itself included.
        unit: What one of `total` is worth.
        square: Squared norm of `total`, in units.
    """
    dots, squares, chances = [], [], []
    for index, values in _parts(update):
        own = values * weight
        sums = total[index] * unit
        dots.append(float((values * sums).sum()))
        squares.append(float((values * values).sum()))
        chances.append(float(((values * (sums - own)) ** 2).sum()))
    dot, norm = math.fsum(dots), math.fsum(squares)
    rest = square * unit**2 - 2 * weight * dot + weight**2 * norm
    return _cosine(dot - weight * norm, math.fsum(chances), norm * max(0.0, rest))


def cosine_with(update: Update, direction: npt.NDArray[np.float32]) -> Cosine:
    """Between an update and a direction."""
    dots, squares, chances = [], [], []
    for index, values in _parts(update):
        other = direction[index].astype(np.float64)
        dots.append(float((values * other).sum()))
        squares.append(float((values * values).sum()))
        chances.append(float(((values * other) ** 2).sum()))
    return _cosine(math.fsum(dots), math.fsum(chances), math.fsum(squares) * squared_norm(direction))


def squared_norm(vector: Reference) -> float:
    """The sum of squares in float64."""
    chunks = (vector[start : start + _CHUNK].astype(np.float64) for start in range(0, len(vector), _CHUNK))
    return math.fsum(float((chunk * chunk).sum()) for chunk in chunks)


def shares(with_rest: Sequence[Cosine], with_drift: Sequence[Cosine] | None = None) -> list[float]:
    """What each update counts for, from 1 down to 0, by how odd it is.

    Args:
        with_rest: Its cosine with the sum of the others.
        with_drift: Its cosine with the direction of the last rounds; None where that is not looked at.
    """
    if len(with_rest) < FEWEST:
        return [1.0] * len(with_rest)
    oddness = _below(with_rest)
    if with_drift is not None and median(c.value for c in with_drift) <= median(_CHANCE * c.chance for c in with_drift):
        above = _below([Cosine(-cosine.value, cosine.chance) for cosine in with_drift])
        oddness = [max(pair) for pair in zip(oddness, above, strict=True)]
    counted = [math.floor(min(1.0, max(0.0, 2.0 - odd)) * _SHARES) / _SHARES for odd in oddness]
    # Half of the nodes are not odd: what says so compares nodes that have nothing in common.
    return counted if 2 * sum(counted) > len(counted) else [1.0] * len(counted)


class Drift:
    """The direction in which the model went in the last rounds.

    Args:
        direction: float32; None before the first round.

    Attributes:
        direction: See above.
    """

    def __init__(self, direction: npt.NDArray[np.float32] | None = None) -> None:
        self.direction = direction

    def follow(self, mean: npt.NDArray[np.float32]) -> None:
        """A round has gone on by its mean."""
        self.direction = mean.copy() if self.direction is None else _MEMORY * self.direction + mean


def _below(cosines: Sequence[Cosine]) -> list[float]:
    """How far each is below zero and below the others, in units of what may be."""
    middle = median(cosine.value for cosine in cosines)
    spread = _SPREAD * median(abs(cosine.value - middle) for cosine in cosines)
    scores = []
    for cosine in cosines:
        chance = _CHANCE * cosine.chance
        if cosine.value >= 0 or not chance:
            scores.append(0.0)
            continue
        scores.append(min(-cosine.value / chance, (middle - cosine.value) / max(spread, chance)))
    return scores


def _cosine(dot: float, variance: float, squares: float) -> Cosine:
    """From an inner product, its variance under random signs, and the product of both squared norms."""
    if not squares > 0:
        return Cosine(0.0, 0.0)
    return Cosine(dot / math.sqrt(squares), math.sqrt(variance / squares))


def _parts(update: Update) -> Iterator[tuple[npt.NDArray[np.int64] | slice, npt.NDArray[np.float64]]]:
    """Where an update has values, and the values, a bounded number at a time."""
    if isinstance(update, SparseUpdate):
        for start in range(0, len(update.values), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            yield update.positions[chunk], update.values[chunk].astype(np.float64)
        return
    values = update.values if isinstance(update, DenseUpdate) else update.to_dense()
    for start in range(0, update.size, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        yield chunk, values[chunk].astype(np.float64)
