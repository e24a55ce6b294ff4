"""The weighted mean of a round's updates once all are there, with what one of them can do bounded."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedglm.compression.codec import Update
from fedglm.server.aggregation.aggregator import Aggregate, Aggregator
from fedglm.server.aggregation.fixed_point import FRACTION_BITS, FixedPointMean
from fedglm.server.aggregation.kept_updates import Kept, KeptUpdates
from fedglm.server.aggregation.reference_check import Preview, ReferenceCheck, ReferenceLosses, groups_of, harmful
from fedglm.server.aggregation.robust import (
    FEWEST,
    Drift,
    Limits,
    cosine_with,
    cosine_with_rest,
    limits_of,
    shares,
    squared_norm,
)

_UNIT: Final = 2.0**-FRACTION_BITS


@dataclass(frozen=True)
class Check:
    """How a round's updates are held to reference records; see `reference_check`.

    Attributes:
        losses: That means (float32) lead to, which are taken one by one.
        groups: Names that are left out together, of those that are given.
    """

    losses: Callable[[Iterable[np.ndarray]], list[float]]
    groups: Callable[[Sequence[str]], list[list[str]]]


class RobustAggregator:
    """Keeps the updates until all are there, and bounds them by what most are like; see `robust` and `Aggregator`.

    Args:
        mean: Of the round.
        folder: Where the updates may be kept meanwhile.
        codec: By which they are coded.
        factor: Greatest norm and value over the medians.
        drift: Direction of the last rounds, which goes on by this one; None where it is not looked at.
        check: Against reference records; None without any.
    """

    def __init__(
        self,
        mean: FixedPointMean,
        folder: Path,
        codec: str,
        *,
        factor: float,
        drift: Drift | None = None,
        check: Check | None = None,
    ) -> None:
        self._mean, self._factor, self._drift, self._check = mean, factor, drift, check
        self._kept = KeptUpdates(folder, len(mean.total), codec)
        self._limits: Limits | None = None

    def add(self, name: str, weight: float, update: Update, blob: bytes) -> None:
        """Keep it."""
        self._mean.check(update, weight)
        self._kept.keep(name, weight, update, blob)

    def close(self) -> Aggregate:
        """Cut what is long, fold all in, let what is odd count for less, and leave out what does harm.

        Returns:
            The mean; counted is the norm that was folded in over the norm that came.

        Raises:
            StorageError: An update cannot be read again.
        """
        counted = self._fold_in()
        mean = self._mean.mean()
        if self._drift is not None:
            self._drift.follow(mean)
        return Aggregate(mean, counted)

    def _fold_in(self) -> dict[str, float]:
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
            if self._drift is not None and self._drift.direction is not None:
                with_drift.append(cosine_with(cut, self._drift.direction))
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


class RobustAggregation:
    """A bounded mean in each round; see `Aggregation`.

    Args:
        size: Number of federated parameters.
        folder: Where the updates of a round may be kept meanwhile.
        codec: By which they are coded.
        factor: Greatest norm and value over the medians.
        looks_at_drift: Whether updates are compared with the direction of the last rounds. That is for noise, which is
            fresh each round; without it, all nodes go on in one direction.
        reference: Measures models on reference records; None without any.
        preview: The models that a mean would lead to.
        seed: Of the experiment.
    """

    def __init__(
        self,
        size: int,
        folder: Path,
        codec: str,
        *,
        factor: float,
        looks_at_drift: bool,
        reference: ReferenceLosses | None,
        preview: Preview,
        seed: int,
    ) -> None:
        self._size, self._folder, self._codec, self._factor = size, folder, codec, factor
        self._reference, self._preview, self._seed = reference, preview, seed
        self._drift = Drift() if looks_at_drift else None

    def begin(self, rows: list[dict[str, Any]], *, sampled: int, eligible: int) -> Aggregator:  # noqa: ARG002
        """A sum with room for all that are asked, and a file for their updates."""
        check, number = None, len(rows) + 1
        if self._reference is not None:
            losses = ReferenceCheck(self._reference, self._preview, number)
            check = Check(losses, lambda names: groups_of(names, self._seed, number))
        mean = FixedPointMean(self._size, terms=sampled)
        return RobustAggregator(mean, self._folder, self._codec, factor=self._factor, drift=self._drift, check=check)

    def state(self) -> dict[str, np.ndarray]:
        """The direction of the last rounds."""
        return {} if self._drift is None or self._drift.direction is None else {"drift": self._drift.direction}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Take up the direction of the last rounds, where it is looked at."""
        if self._drift is not None:
            self._drift.direction = state.get("drift")
