"""Robust weighted means: a round's updates are stored, and aggregated with bounded influence once all are there."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedglm.compression.codec import Update
from fedglm.server.aggregation.aggregator import Aggregate, Aggregator
from fedglm.server.aggregation.fixed_point import FRACTION_BITS, FixedPointMean
from fedglm.server.aggregation.kept_updates import KeptUpdate, KeptUpdates
from fedglm.server.aggregation.reference_check import (
    Preview,
    ReferenceCheck,
    ReferenceLosses,
    find_harmful,
    make_groups,
)
from fedglm.server.aggregation.robust import (
    MIN_UPDATES,
    Drift,
    Limits,
    compute_cosine,
    compute_cosine_with_others,
    compute_limits,
    compute_shares,
    compute_squared_norm,
)

_UNIT: Final = 2.0**-FRACTION_BITS


@dataclass(frozen=True)
class HarmCheck:
    """Check of a round's updates on reference records; see `reference_check`.

    Attributes:
        losses: Computes the loss that each mean (shape (n,), float32) leads to; takes the means one by one.
        make_groups: Divides names of nodes into groups that are left out together.
    """

    losses: Callable[[Iterable[np.ndarray]], list[float]]
    make_groups: Callable[[Sequence[str]], list[list[str]]]


class RobustAggregator:
    """Stores the updates until all are there, then bounds the influence of each; see `robust` and `Aggregator`.

    Args:
        mean: Mean of the round, without updates.
        folder: Folder for the stored updates.
        codec: Name of the codec of the updates.
        factor: Maximum norm and value, over the medians.
        drift: Direction of the last rounds, to which this round's mean is added; None where it is not checked.
        check: Check on reference records; None without such records.
    """

    def __init__(
        self,
        mean: FixedPointMean,
        folder: Path,
        codec: str,
        *,
        factor: float,
        drift: Drift | None = None,
        check: HarmCheck | None = None,
    ) -> None:
        self._mean, self._factor, self._drift, self._check = mean, factor, drift, check
        self._kept = KeptUpdates(folder, len(mean.total), codec)
        self._limits: Limits | None = None

    def add(self, name: str, weight: float, update: Update, blob: bytes) -> None:
        """Check an update and store it; see `Aggregator.add`."""
        self._mean.check(update, weight)
        self._kept.keep(name, weight, update, blob)

    def close(self) -> Aggregate:
        """Clip long updates, add all to the sum, reduce the share of outliers, and leave out harmful updates.

        Returns:
            The mean; a contribution is the norm that was added over the norm of the update.

        Raises:
            StorageError: An update cannot be read again.
        """
        contributions = self._sum_up()
        mean = self._mean.mean()
        if self._drift is not None:
            self._drift.update(mean)
        return Aggregate(mean, contributions)

    def _sum_up(self) -> dict[str, float]:
        """Add all updates to the sum, bounded; return contributions below 1 by name."""
        entries = self._kept.entries
        self._limits = compute_limits([e.norm for e in entries], [e.max_abs for e in entries], self._factor)
        contributions = {}
        for entry, update in self._kept.load_all():
            clipped = self._clip(update)
            contributions[entry.name] = clipped.norm() / entry.norm if clipped is not update else 1.0
            self._mean.add(clipped, entry.weight)
        if len(entries) >= MIN_UPDATES:
            shares = self._reduce_outliers(entries)
            if self._check is not None:
                for name in self._remove_harmful(entries, shares, self._check):
                    shares[name] = 0.0
            contributions = {name: norm_ratio * shares[name] for name, norm_ratio in contributions.items()}
        self._kept.close()
        return {name: round(share, 4) for name, share in contributions.items() if share < 1}

    def _clip(self, update: Update) -> Update:
        return update if self._limits is None else self._limits.clip(update)

    def _reduce_outliers(self, entries: list[KeptUpdate]) -> dict[str, float]:
        """Subtract part of each update that opposes the others; return the share of each, by name."""
        squared_norm = compute_squared_norm(self._mean.total)
        with_others, with_drift = [], []
        for entry, update in self._kept.load_all():
            clipped = self._clip(update)
            with_others.append(compute_cosine_with_others(clipped, entry.weight, self._mean.total, _UNIT, squared_norm))
            if self._drift is not None and self._drift.direction is not None:
                with_drift.append(compute_cosine(clipped, self._drift.direction))
        shares = compute_shares(with_others, with_drift or None)
        for entry, share in zip(entries, shares, strict=True):
            if share < 1:
                self._mean.subtract(self._clip(self._kept.load(entry)), entry.weight * (1 - share))
        return {entry.name: share for entry, share in zip(entries, shares, strict=True)}

    def _remove_harmful(self, entries: list[KeptUpdate], shares: dict[str, float], check: HarmCheck) -> list[str]:
        """Subtract harmful updates and return their names.

        Together with the updates that already have no share they are a minority.
        """
        by_name = {entry.name: entry for entry in entries if shares[entry.name] > 0}
        groups = check.make_groups(list(by_name))

        def load_groups(indices: Collection[int]) -> list[tuple[Update, float]]:
            members = [by_name[name] for index in indices for name in groups[index]]
            return [(self._clip(self._kept.load(entry)), entry.weight * shares[entry.name]) for entry in members]

        def means_without(choices: Sequence[Collection[int]]) -> Iterator[np.ndarray]:
            for indices in choices:
                removed = load_groups(indices)
                for update, weight in removed:
                    self._mean.subtract(update, weight)
                yield self._mean.mean()
                for update, weight in removed:
                    self._mean.add(update, weight)

        minority = (len(entries) - 1) // 2 - (len(entries) - len(by_name))
        max_groups = minority // max(map(len, groups))
        chosen = find_harmful(len(groups), max_groups, lambda choices: check.losses(means_without(choices)))
        for update, weight in load_groups(chosen):
            self._mean.subtract(update, weight)
        return [name for index in chosen for name in groups[index]]


class RobustAggregation:
    """Robust means in each round; see `Aggregation`.

    Args:
        size: Number of federated parameters.
        folder: Folder for the stored updates of a round.
        codec: Name of the codec of the updates.
        factor: Maximum norm and value, over the medians.
        checks_drift: Whether updates are compared with the direction of the last rounds. That is for noise, which is
            drawn anew each round; without it, all nodes continue in one direction.
        reference: Computes losses of models on reference records; None without such records.
        preview: Computes the models that a mean would lead to.
        seed: Seed of the experiment.
    """

    def __init__(
        self,
        size: int,
        folder: Path,
        codec: str,
        *,
        factor: float,
        checks_drift: bool,
        reference: ReferenceLosses | None,
        preview: Preview,
        seed: int,
    ) -> None:
        self._size, self._folder, self._codec, self._factor = size, folder, codec, factor
        self._reference, self._preview, self._seed = reference, preview, seed
        self._drift = Drift() if checks_drift else None

    def begin(self, rows: list[dict[str, Any]], *, sampled: int, eligible: int) -> Aggregator:  # noqa: ARG002
        """Make an aggregator whose sum has room for all sampled nodes, and whose updates are stored in a file."""
        check, server_round = None, len(rows) + 1
        if self._reference is not None:
            losses = ReferenceCheck(self._reference, self._preview, server_round)
            check = HarmCheck(losses, lambda names: make_groups(names, self._seed, server_round))
        mean = FixedPointMean(self._size, terms=sampled)
        return RobustAggregator(mean, self._folder, self._codec, factor=self._factor, drift=self._drift, check=check)

    def state(self) -> dict[str, np.ndarray]:
        """Return the direction of the last rounds; no arrays where it is not checked, or before the first round."""
        return {} if self._drift is None or self._drift.direction is None else {"drift": self._drift.direction}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Restore the direction of the last rounds, where it is checked."""
        if self._drift is not None:
            self._drift.direction = state.get("drift")
