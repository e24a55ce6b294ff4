"""Weighted means of all updates, summed as they arrive."""

from typing import Any

import numpy as np

from fedglm.compression.codec import Update
from fedglm.server.aggregation.aggregator import Aggregate, Aggregator
from fedglm.server.aggregation.central_dp import ClientPrivacy
from fedglm.server.aggregation.fixed_point import FixedPointMean


class MeanAggregator:
    """Adds each update to the sum as it arrives; see `Aggregator`.

    Args:
        mean: Mean of the round, without updates.
    """

    def __init__(self, mean: FixedPointMean) -> None:
        self._mean = mean

    def add(self, name: str, weight: float, update: Update, blob: bytes) -> None:  # noqa: ARG002 (one signature)
        """Add the update to the sum; its name and bytes are not needed."""
        self._mean.add(update, weight)

    def close(self) -> Aggregate:
        """Return the mean, to which each update contributes in full."""
        return Aggregate(self._mean.mean())


class MeanAggregation:
    """Plain weighted means; see `Aggregation`.

    Args:
        size: Number of federated parameters.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def begin(self, rows: list[dict[str, Any]], *, sampled: int, eligible: int) -> Aggregator:  # noqa: ARG002
        """Make an aggregator whose sum has room for all sampled nodes."""
        return MeanAggregator(FixedPointMean(self._size, terms=sampled))

    def state(self) -> dict[str, np.ndarray]:
        """Return no arrays: there is no state."""
        return {}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Do nothing: there is no state."""


class PrivateAggregation(MeanAggregation):
    """Means with client-level differential privacy; see `central_dp`.

    Args:
        size: Number of federated parameters.
        privacy: Clipping, noise and accounting of the run.
    """

    def __init__(self, size: int, privacy: ClientPrivacy) -> None:
        super().__init__(size)
        self._privacy = privacy

    def begin(self, rows: list[dict[str, Any]], *, sampled: int, eligible: int) -> Aggregator:  # noqa: ARG002
        """Make an aggregator whose sum has room for all eligible nodes: no bound may depend on the sample.

        Raises:
            PrivacyError: One more round would exceed the budget.
        """
        return MeanAggregator(self._privacy.begin(rows, self._size, terms=eligible))
