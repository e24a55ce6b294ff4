"""The interface between rounds and aggregation: a round knows nothing more of how its updates become one mean.

aggregator = aggregation.begin(rows, sampled=10, eligible=12)    for each round
aggregator.add(name, weight, update, blob)                       for each good reply, in any order
mean = aggregator.close().mean                                   once
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedglm.compression.codec import Update


@dataclass(frozen=True)
class Aggregate:
    """Result of a round's aggregation.

    Attributes:
        mean: Weighted mean of the updates, shape (n,), float32, where n is the number of federated parameters.
        contributions: Share of a node's update that entered the mean, by name of the node; only those below 1.
    """

    mean: npt.NDArray[np.float32]
    contributions: dict[str, float] = field(default_factory=dict)


class Aggregator(Protocol):
    """Aggregates the updates of one round."""

    def add(self, name: str, weight: float, update: Update, blob: bytes) -> None:
        """Add a node's update.

        Args:
            name: Name of the node; each has one update in a round.
            weight: Public weight of the node, in (0, 1].
            update: Update decoded from `blob`.
            blob: Coded update, as received.

        Raises:
            CodecError: The update cannot be summed; nothing was changed.
            StorageError: The update cannot be stored.
        """

    def close(self) -> Aggregate:
        """Compute the aggregate of all updates; none may be added afterwards.

        Raises:
            StorageError: A stored update cannot be read again.
            PrivacyError: A private mean was already released.
        """


class Aggregation(Protocol):
    """The aggregation of a run: makes an aggregator for each round, and keeps the state that later rounds need."""

    def begin(self, rows: list[dict[str, Any]], *, sampled: int, eligible: int) -> Aggregator:
        """Make the aggregator of the round after `rows`.

        Args:
            rows: Rows of `rounds.jsonl`, one for each finished round.
            sampled: Number of sampled nodes.
            eligible: Number of nodes that could have been sampled.

        Raises:
            PrivacyError: One more round would exceed a budget.
        """

    def state(self) -> dict[str, np.ndarray]:
        """Return the state to checkpoint, as named arrays."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restore the state of a checkpoint."""
