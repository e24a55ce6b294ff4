"""From a round's updates to its mean: at once, or once all are there, with what one of them can do bounded."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from fedglm.compression.codec import Update
from fedglm.server.aggregation.fixed_point import FRACTION_BITS, FixedPointMean
from fedglm.server.aggregation.kept_updates import Kept, KeptUpdates
from fedglm.server.aggregation.reference_check import harmful
from fedglm.server.aggregation.robust import (
    FEWEST,
    Limits,
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


@dataclass(frozen=True)
class Check:
    """How a round's updates are held to reference records; see `reference_check`.

    Attributes:
        losses: That means (float32) lead to, which are taken one by one.
        groups: Names that are left out together, of those that are given.
    """

    losses: Callable[[Iterable[np.ndarray]], list[float]]
    groups: Callable[[Sequence[str]], list[list[str]]]


class Robust:
    """Keeps the updates until all are there, and bounds them by what most are like; see `robust`.

    Args:
        mean: Of the round.
        folder: Where the updates may be kept meanwhile.
        codec: By which they are coded.
        factor: Greatest norm and value over the medians.
        drift: Direction of the last rounds, float32; None where there is none, or it is not looked at.
        check: Against reference records; None without any.
    """

    def __init__(
        self,
        mean: FixedPointMean,
        folder: Path,
        codec: str,
        *,
        factor: float,
        drift: npt.NDArray[np.float32] | None = None,
        check: Check | None = None,
    ) -> None:
        self._mean, self._factor, self._drift, self._check = mean, factor, drift, check
        self._kept = KeptUpdates(folder, len(mean.total), codec)
        self._limits: Limits | None = None

    def take(self, name: str, weight: float, update: Update, blob: bytes) -> None:
        """Keep it; see `Folding`."""
        self._mean.check(update, weight)
        self._kept.keep(name, weight, update, blob)

    def close(self) -> dict[str, float]:
        """Cut what is long, fold all in, let what is odd count for less, and leave out what does harm.

        Returns:
            Norm that was folded in over norm that came, by name of the node, where that is below 1.

        Raises:
            StorageError: An update cannot be read again.
        """
        kept = self._kept.by_name
        self._limits = limits_of([one.norm for one in kept], [one.greatest for one in kept], self._factor)
        counted = {}
        for one, update in self._kept.updates():
            cut = self._cut(update)
            counted[one.name] = cut.norm() / one.norm if cut is not update else 1.0
            self._mean.add(cut, one.weight)
        if len(kept) >= FEWEST:
            counts_for = self._let_odd_count_for_less(kept)
            if self._check is not None:
                for name in self._leave_out(kept, counts_for, self._check):
                    counts_for[name] = 0.0
            counted = {name: share * counts_for[name] for name, share in counted.items()}
        self._kept.close()
        return {name: round(share, 4) for name, share in counted.items() if share < 1}

    def _cut(self, update: Update) -> Update:
        return update if self._limits is None else self._limits.cut(update)

    def _let_odd_count_for_less(self, kept: list[Kept]) -> dict[str, float]:
        """Take back what pulls against the others; what each counts for, by name."""
        square = squared_norm(self._mean.total)
        with_rest, with_drift = [], []
        for one, update in self._kept.updates():
            cut = self._cut(update)
            with_rest.append(cosine_with_rest(cut, one.weight, self._mean.total, _UNIT, square))
            if self._drift is not None:
                with_drift.append(cosine_with(cut, self._drift))
        counts_for = shares(with_rest, with_drift or None)
        for one, share in zip(kept, counts_for, strict=True):
            if share < 1:
                self._mean.take_back(self._cut(self._kept.update(one)), one.weight * (1 - share))
        return {one.name: share for one, share in zip(kept, counts_for, strict=True)}

    def _leave_out(self, kept: list[Kept], counts_for: dict[str, float], check: Check) -> list[str]:
        """Take back what does harm; whose it was. With what counts for nothing already it is a minority."""
        by_name = {one.name: one for one in kept if counts_for[one.name] > 0}
        groups = check.groups(list(by_name))

        def members(numbers: Collection[int]) -> list[tuple[Update, float]]:
            found = [by_name[name] for number in numbers for name in groups[number]]
            return [(self._cut(self._kept.update(one)), one.weight * counts_for[one.name]) for one in found]

        def means(choices: Sequence[Collection[int]]) -> Iterator[np.ndarray]:
            for numbers in choices:
                away = members(numbers)
                for update, weight in away:
                    self._mean.take_back(update, weight)
                yield self._mean.mean()
                for update, weight in away:
                    self._mean.add(update, weight)

        minority = (len(kept) - 1) // 2 - (len(kept) - len(by_name))
        chosen = harmful(len(groups), minority // max(map(len, groups)), lambda choices: check.losses(means(choices)))
        for update, weight in members(chosen):
            self._mean.take_back(update, weight)
        return [name for number in chosen for name in groups[number]]
