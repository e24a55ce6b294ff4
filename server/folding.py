"""From a round's updates to its mean: at once, or once all are there, with what one of them can do bounded."""

from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fedglm.compression.codec import Update
from fedglm.server.aggregation import FRACTION_BITS, FixedPointMean
from fedglm.server.kept_updates import KeptUpdates
from fedglm.server.robust import (
    FEWEST,
    cosine_with,
    cosine_with_rest,
    limits_of,
    shares,
    squared_norm,
)

_UNIT: Final = 2.0**-FRACTION_BITS


class Folding(Protocol):
    """What a round gives its updates to."""

    def take(self, name: str, weight: float, update: Update, blob: bytes) -> None:
        """Take a node's update.

        Args:
            name: Of the node; each has one update in a round.
            weight: Public weight of the node.
            update: Decoded from `blob`.
            blob: As it came.

        Raises:
            CodecError: It cannot be summed; nothing was changed.
            StorageError: It cannot be kept.
        """

    def close(self) -> dict[str, float]:
        """All are there: from now on the mean is whole. Returns what each node's counted for, where that is below 1."""


class AtOnce:
    """Folds each update into the mean as it comes.

    Args:
        mean: Of the round.
    """

    def __init__(self, mean: FixedPointMean) -> None:
        self._mean = mean

    def take(self, name: str, weight: float, update: Update, blob: bytes) -> None:  # noqa: ARG002 (one signature)
        """Fold it in; see `Folding`."""
        self._mean.add(update, weight)

    def close(self) -> dict[str, float]:
        """Nothing is bounded."""
        return {}


class Robust:
    """Keeps the updates until all are there, and bounds them by what most are like; see `robust`.

    Args:
        mean: Of the round.
        folder: Where the updates may be kept meanwhile.
        codec: By which they are coded.
        factor: Greatest norm and value over the medians.
        drift: Direction of the last rounds, float32; None where there is none, or it is not looked at.
    """

    def __init__(
        self,
        mean: FixedPointMean,
        folder: Path,
        codec: str,
        *,
        factor: float,
        drift: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self._mean, self._factor, self._drift = mean, factor, drift
        self._kept = KeptUpdates(folder, len(mean.total), codec)

    def take(self, name: str, weight: float, update: Update, blob: bytes) -> None:
        """Keep it; see `Folding`."""
        self._mean.check(update, weight)
        self._kept.keep(name, weight, update, blob)

    def close(self) -> dict[str, float]:
        """Cut what is long, fold all in, and let what is odd count for less.

        Returns:
            Norm that was folded in over norm that came, by name of the node, where that is below 1.

        Raises:
            StorageError: An update cannot be read again.
        """
        kept = self._kept.by_name
        limits = limits_of([one.norm for one in kept], [one.greatest for one in kept], self._factor)

        def within(update: Update) -> Update:
            return update if limits is None else limits.cut(update)

        counted = {}
        for one, update in self._kept.updates():
            cut = within(update)
            counted[one.name] = cut.norm() / one.norm if cut is not update else 1.0
            self._mean.add(cut, one.weight)
        if len(kept) >= FEWEST:
            square = squared_norm(self._mean.total)
            with_rest, with_drift = [], []
            for one, update in self._kept.updates():
                cut = within(update)
                with_rest.append(cosine_with_rest(cut, one.weight, self._mean.total, _UNIT, square))
                if self._drift is not None:
                    with_drift.append(cosine_with(cut, self._drift))
            counts_for = shares(with_rest, with_drift or None)
            for one, share in zip(kept, counts_for, strict=True):
                if share < 1:
                    self._mean.take_back(within(self._kept.update(one)), one.weight * (1 - share))
                    counted[one.name] *= share
        self._kept.close()
        return {name: round(share, 4) for name, share in counted.items() if share < 1}
