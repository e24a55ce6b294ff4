"""Bytes and rounds to equal loss: how soon, and for how many bytes, a run gets to where another one ended.

A *trial* is one run; it is held against the baseline's run of the same seed, so that neither the split of the data nor
the initialisation counts for or against a codec. A *standing* is what all trials of a codec come to.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from fedglm.run_folder.record import RoundRecord, RunRecord, Traffic, read_run

TOLERANCE = 1.01
Way = Literal["up", "down", "total"]


@dataclass(frozen=True)
class ComparisonRow:
    """A codec that is compared: what it is called, and its run folders, one a seed."""

    label: str
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class Reached:
    """The first round at or below the target, and all bytes sent until its end, that round's included."""

    round: int
    traffic: Traffic

    def bytes(self, way: Way) -> int:
        """Bytes up, down or both ways."""
        return {"up": self.traffic.up, "down": self.traffic.down, "total": self.traffic.total}[way]


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds: its mean, the least and the greatest. All are NaN where one seed's is not finite."""

    mean: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float | None], *, geometric: bool = False) -> Self | None:
        """The spread of the values that are there; None where none is.

        Args:
            values: One a seed; None where there is no figure.
            geometric: Take the geometric mean, as is right for ratios; the values are positive then.
        """
        known = [value for value in values if value is not None]
        if not known:
            return None
        if not all(math.isfinite(value) for value in known):
            return cls(math.nan, math.nan, math.nan)
        if geometric:
            mean = math.exp(sum(math.log(value) for value in known) / len(known))
        else:
            mean = math.fsum(known) / len(known)
        return cls(min(max(mean, min(known)), max(known)), min(known), max(known))


@dataclass(frozen=True)
class SeedRun:
    """One run against the target of its seed.

    Attributes:
        target: The loss to reach; None where the baseline ended without a finite one.
        reached: When this run reached it, if ever.
        base: When the baseline of the same seed first reached it.
        base_rounds: All rounds of that baseline.
    """

    folder: Path
    run: RunRecord
    target: float | None
    reached: Reached | None
    base: Reached | None
    base_rounds: int

    @property
    def seed(self) -> str:
        """The run's seed as text."""
        return self.run.text("seed") or "?"

    @property
    def best_loss(self) -> float | None:
        """The least finite loss of any round."""
        losses = (record.score.loss for record in self.run.rounds)
        return min((loss for loss in losses if loss is not None and math.isfinite(loss)), default=None)

    def ratio(self, way: Way) -> float | None:
        """Bytes to the target over the baseline's; None where it was not reached or nothing was sent."""
        if self.reached is None or self.base is None:
            return None
        own, base = self.reached.bytes(way), self.base.bytes(way)
        return own / base if own and base else None

    @property
    def of_rounds(self) -> float | None:
        """Rounds to the target over the rounds that the baseline took to it."""
        return self.reached.round / self.base.round if self.reached and self.base and self.base.round else None

    @property
    def of_run(self) -> float | None:
        """Rounds to the target over all rounds of the baseline's run."""
        return self.reached.round / self.base_rounds if self.reached and self.base_rounds else None


@dataclass(frozen=True)
class Standing:
    """A codec over all seeds; `trials` has one a seed, in the seeds' order."""

    label: str
    trials: tuple[SeedRun, ...]

    @property
    def run(self) -> RunRecord:
        """The first seed's run, for what all of them share."""
        return self.trials[0].run

    @property
    def reached(self) -> int:
        """Under how many seeds the target was reached."""
        return sum(trial.reached is not None for trial in self.trials)

    @property
    def always_reached(self) -> bool:
        """Whether it was reached under every seed."""
        return self.reached == len(self.trials)

    def over_seeds(self, measure: Callable[[SeedRun], float | None]) -> Spread | None:
        """A figure over the seeds that have it."""
        return Spread.over(map(measure, self.trials))

    def ratio(self, way: Way) -> Spread | None:
        """Bytes to the target over the baseline's: the geometric mean over the seeds that reached it."""
        return Spread.over((trial.ratio(way) for trial in self.trials), geometric=True)

    def bytes_to_target(self, way: Way) -> Spread | None:
        """Bytes until the target, over the seeds that reached it."""
        return self.over_seeds(lambda trial: trial.reached.bytes(way) if trial.reached else None)

    @property
    def rounds_to_target(self) -> Spread | None:
        """Rounds until the target, over the seeds that reached it."""
        return self.over_seeds(lambda trial: trial.reached.round if trial.reached else None)


@dataclass(frozen=True)
class Comparison:
    """Codecs side by side, the baseline first, each under the same seeds."""

    tolerance: float
    standings: tuple[Standing, ...]

    @property
    def target(self) -> Spread | None:
        """The loss to reach, over the seeds whose baseline ended with a finite one; None where none did."""
        return self.standings[0].over_seeds(lambda trial: trial.target)

    @property
    def seeds(self) -> tuple[str, ...]:
        """The seeds, as the baseline has them."""
        return tuple(trial.seed for trial in self.standings[0].trials)


def target_loss(baseline: RunRecord, tolerance: float = TOLERANCE) -> float | None:
    """The loss to reach: the baseline's at its end, times the tolerance; None where that end has no finite loss.

    Raises:
        ValueError: The tolerance is not a finite factor of at least 1.
    """
    if not (math.isfinite(tolerance) and tolerance >= 1):
        raise ValueError(f"tolerance is {tolerance}: give a factor of 1 or a little more, such as 1.01")
    loss = baseline.final.loss
    return loss * tolerance if loss is not None and math.isfinite(loss) else None


def first_round_at_most(rounds: Sequence[RoundRecord], target: float) -> int | None:
    """The number of the first round whose loss is at most the target; rounds without a finite loss do not count."""
    for record in rounds:
        loss = record.score.loss
        if loss is not None and math.isfinite(loss) and loss <= target:
            return record.round
    return None


def traffic_until(rounds: Sequence[RoundRecord], last: int) -> Traffic:
    """All bytes of the rounds up to and including the one numbered `last`."""
    return sum((record.traffic for record in rounds if record.round <= last), Traffic())


def reach(rounds: Sequence[RoundRecord], target: float | None) -> Reached | None:
    """When a run reaches the target, and what it has sent by then; None if it never does or there is no target."""
    found = None if target is None else first_round_at_most(rounds, target)
    return None if found is None else Reached(found, traffic_until(rounds, found))


def compare_runs(rows: Sequence[ComparisonRow], *, tolerance: float = TOLERANCE) -> Comparison:
    """Reads the runs and measures each against the first row's run of the same place in `folders`.

    Args:
        rows: The codecs, the baseline (dense, as a rule) first.
        tolerance: The factor on the baseline's final loss that still counts as equal.

    Raises:
        ReportError: A folder does not hold a finished run.
        ValueError: No run was given, the rows have other numbers of runs, or the tolerance is below 1.
    """
    if not rows or not rows[0].folders:
        raise ValueError("nothing to compare: give at least one run, the dense one first")
    if len({len(row.folders) for row in rows}) > 1:
        raise ValueError("give every codec one run a seed: " + ", ".join(f"{r.label} {len(r.folders)}" for r in rows))
    runs = [[read_run(folder) for folder in row.folders] for row in rows]
    targets = [target_loss(run, tolerance) for run in runs[0]]
    bases = [reach(run.rounds, target) for run, target in zip(runs[0], targets, strict=True)]
    standings = []
    for row, own in zip(rows, runs, strict=True):
        trials = (
            SeedRun(folder, run, target, reach(run.rounds, target), base, len(baseline.rounds))
            for folder, run, target, base, baseline in zip(row.folders, own, targets, bases, runs[0], strict=True)
        )
        standings.append(Standing(row.label, tuple(trials)))
    return Comparison(tolerance, tuple(standings))
