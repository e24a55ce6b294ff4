"""What makes one mean of the updates of a round: the protocol that rounds know, and no more of it.

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
    """What a round's updates come to.

    Attributes:
        mean: Weighted mean, float32, one value for each federated parameter.
        counted: What a node's update counted for, by name, where that is below 1.
    """

    mean: npt.NDArray[np.float32]
    counted: dict[str, float] = field(default_factory=dict)


class Aggregator(Protocol):
    """Takes the updates of one round."""

    def add(self, name: str, weight: float, update: Update, blob: bytes) -> None:
        """Take a node's update.

        Args:
            name: Of the node; each has one update in a round.
            weight: Public weight of the node, in (0, 1].
            update: Decoded from `blob`.
            blob: As it came.

        Raises:
            CodecError: It cannot be summed; nothing was changed.
            StorageError: It cannot be kept.
        """

    def close(self) -> Aggregate:
        """All are there; nothing may be added any more.

        Raises:
            StorageError: An update that was kept cannot be read again.
            PrivacyError: What a private mean may release was released before.
        """


class Aggregation(Protocol):
    """How a run makes its means: gives each round an aggregator, and remembers what later rounds need."""

    def begin(self, rows: list[dict[str, Any]], *, sampled: int, eligible: int) -> Aggregator:
        """What takes the updates of the round after `rows`.

        Args:
            rows: One object for each round done.
            sampled: Nodes that are asked.
            eligible: Nodes that could have been.

        Raises:
            PrivacyError: One more round would exceed a budget.
        """

    def state(self) -> dict[str, np.ndarray]:
        """Memory to checkpoint."""

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take up the memory of a checkpoint."""
