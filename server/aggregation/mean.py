"""The weighted mean of all updates, summed as they come."""

from typing import Any

import numpy as np

from fedglm.compression.codec import Update
from fedglm.server.aggregation.aggregator import Aggregate, Aggregator
from fedglm.server.aggregation.central_dp import ClientPrivacy
from fedglm.server.aggregation.fixed_point import FixedPointMean


class MeanAggregator:
    """Folds each update into the sum as it comes; see `Aggregator`.

    Args:
        mean: Of the round.
    """

    def __init__(self, mean: FixedPointMean) -> None:
        self._mean = mean

    def add(self, name: str, weight: float, update: Update, blob: bytes) -> None:  # noqa: ARG002 (one signature)
        """Fold it in."""
        self._mean.add(update, weight)

    def close(self) -> Aggregate:
        """The mean; each update counts whole."""
        return Aggregate(self._mean.mean())


class MeanAggregation:
    """A plain weighted mean in each round; see `Aggregation`.

    Args:
        size: Number of federated parameters.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def begin(self, rows: list[dict[str, Any]], *, sampled: int, eligible: int) -> Aggregator:  # noqa: ARG002
        """A sum with room for all that are asked."""
        return MeanAggregator(FixedPointMean(self._size, terms=sampled))

    def state(self) -> dict[str, np.ndarray]:
        """Nothing is remembered."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Nothing is remembered."""


class PrivateAggregation(MeanAggregation):
    """Clipped, noised sums over a public number; see `central_dp`.

    Args:
        size: Number of federated parameters.
        privacy: Clips, noises and counts.
    """

    def __init__(self, size: int, privacy: ClientPrivacy) -> None:
        super().__init__(size)
        self._privacy = privacy

    def begin(self, rows: list[dict[str, Any]], *, sampled: int, eligible: int) -> Aggregator:  # noqa: ARG002
        """A sum with room for all that could be asked: no bound may depend on who was drawn."""
        return MeanAggregator(self._privacy.begin(rows, self._size, terms=eligible))
