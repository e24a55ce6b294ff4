"""Bytes and rounds to equal loss: after how many of each a run reaches the loss at which the baseline ended.

Each run is compared with the baseline's run of the same seed, so that neither the split of the data nor the
initialisation favours a codec. A codec's result summarises its runs over all seeds.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from fedglm.run_folder.record import RoundRecord, RunRecord, read_run
from fedglm.run_folder.traffic import Traffic

TOLERANCE = 1.01
Direction = Literal["up", "down", "total"]


@dataclass(frozen=True)
class ComparisonRow:
    """Codec to compare.

    Attributes:
        label: Name of the codec, with its settings.
        folders: Its run folders, one a seed.
    """

    label: str
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class Reached:
    """Point at which a run reached the target.

    Attributes:
        round: Number of the first round whose loss is at or below the target.
        traffic: Bytes of all rounds up to and including that one.
    """

    round: int
    traffic: Traffic

    def bytes(self, direction: Direction) -> int:
        """Return the uplink, downlink or total bytes."""
        return {"up": self.traffic.uplink, "down": self.traffic.downlink, "total": self.traffic.total}[direction]


@dataclass(frozen=True)
class Spread:
    """Mean, minimum and maximum of a figure over the seeds; all NaN where one seed's is not finite."""

    mean: float
    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float | None], *, geometric: bool = False) -> Self | None:
        """Summarise the values that are not None; None where there are none.

        Args:
            values: One value a seed; None where there is no figure.
            geometric: Take the geometric mean, the usual mean of ratios; values must then be positive.
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
    """One run, compared with the baseline of the same seed.

    Attributes:
        folder: Folder of the run.
        run: Its record.
        target: Loss to reach; None where the baseline ended without a finite one.
        reached: Point at which this run reached the target; None if it never did.
        base: Point at which the baseline of the same seed first reached it.
        base_rounds: Number of all rounds of that baseline.
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
        """The smallest finite loss of any round."""
        losses = (record.score.loss for record in self.run.rounds)
        return min((loss for loss in losses if loss is not None and math.isfinite(loss)), default=None)

    def ratio(self, direction: Direction) -> float | None:
        """Return bytes to the target over the baseline's; None where it was not reached or nothing was sent."""
        if self.reached is None or self.base is None:
            return None
        own, base = self.reached.bytes(direction), self.base.bytes(direction)
        return own / base if own and base else None

    @property
    def rounds_over_baseline(self) -> float | None:
        """Rounds to the target over the baseline's rounds to it."""
        return self.reached.round / self.base.round if self.reached and self.base and self.base.round else None

    @property
    def rounds_over_baseline_run(self) -> float | None:
        """Rounds to the target over all rounds of the baseline."""
        return self.reached.round / self.base_rounds if self.reached and self.base_rounds else None


@dataclass(frozen=True)
class CodecResult:
    """Results of a codec over all seeds; `seed_runs` has one run a seed, in the order of the seeds."""

    label: str
    seed_runs: tuple[SeedRun, ...]

    @property
    def run(self) -> RunRecord:
        """The first seed's run, for the fields that all runs share."""
        return self.seed_runs[0].run

    @property
    def reached(self) -> int:
        """Number of seeds under which the target was reached."""
        return sum(seed_run.reached is not None for seed_run in self.seed_runs)

    @property
    def always_reached(self) -> bool:
        """Whether the target was reached under every seed."""
        return self.reached == len(self.seed_runs)

    def over_seeds(self, measure: Callable[[SeedRun], float | None]) -> Spread | None:
        """Summarise a figure over the seeds that have it."""
        return Spread.over(map(measure, self.seed_runs))

    def ratio(self, direction: Direction) -> Spread | None:
        """Summarise bytes to the target over the baseline's, by geometric mean over the seeds that reached it."""
        return Spread.over((seed_run.ratio(direction) for seed_run in self.seed_runs), geometric=True)

    def bytes_to_target(self, direction: Direction) -> Spread | None:
        """Summarise the bytes until the target, over the seeds that reached it."""
        return self.over_seeds(lambda seed_run: seed_run.reached.bytes(direction) if seed_run.reached else None)

    @property
    def rounds_to_target(self) -> Spread | None:
        """Rounds until the target, over the seeds that reached it."""
        return self.over_seeds(lambda seed_run: seed_run.reached.round if seed_run.reached else None)


@dataclass(frozen=True)
class Comparison:
    """Results of several codecs under the same seeds, the baseline first."""

    tolerance: float
    codecs: tuple[CodecResult, ...]

    @property
    def target(self) -> Spread | None:
        """Loss to reach, over the seeds whose baseline ended with a finite one; None where none did."""
        return self.codecs[0].over_seeds(lambda seed_run: seed_run.target)

    @property
    def seeds(self) -> tuple[str, ...]:
        """Seeds of the baseline's runs, as text."""
        return tuple(seed_run.seed for seed_run in self.codecs[0].seed_runs)


def compute_target_loss(baseline: RunRecord, tolerance: float = TOLERANCE) -> float | None:
    """Compute the loss to reach: the baseline's final loss times the tolerance; None where that loss is not finite.

    Raises:
        ValueError: The tolerance is not a finite factor of at least 1.
    """
    if not (math.isfinite(tolerance) and tolerance >= 1):
        raise ValueError(f"tolerance is {tolerance}: give a factor of 1 or a little more, such as 1.01")
    loss = baseline.final.loss
    return loss * tolerance if loss is not None and math.isfinite(loss) else None


def find_first_round_at_most(rounds: Sequence[RoundRecord], target: float) -> int | None:
    """Return the number of the first round whose loss is at most the target; non-finite losses do not count."""
    for record in rounds:
        loss = record.score.loss
        if loss is not None and math.isfinite(loss) and loss <= target:
            return record.round
    return None


def sum_traffic_until(rounds: Sequence[RoundRecord], last: int) -> Traffic:
    """Sum the bytes of the rounds up to and including number `last`."""
    return sum((record.traffic for record in rounds if record.round <= last), Traffic())


def find_reached(rounds: Sequence[RoundRecord], target: float | None) -> Reached | None:
    """Find where a run reaches the target, and the bytes until then; None if it never does or there is no target."""
    first = None if target is None else find_first_round_at_most(rounds, target)
    return None if first is None else Reached(first, sum_traffic_until(rounds, first))


def compare_runs(rows: Sequence[ComparisonRow], *, tolerance: float = TOLERANCE) -> Comparison:
    """Read the runs, and compare each with the baseline's run at the same index in `folders`.

    Args:
        rows: Codecs, the baseline (usually dense) first.
        tolerance: Factor on the baseline's final loss that still counts as equal.

    Raises:
        ReportError: A folder does not hold a finished run.
        ValueError: There is no run, the codecs have different numbers of runs, or the tolerance is below 1.
    """
    if not rows or not rows[0].folders:
        raise ValueError("nothing to compare: give at least one run, the dense one first")
    if len({len(row.folders) for row in rows}) > 1:
        raise ValueError("give every codec one run a seed: " + ", ".join(f"{r.label} {len(r.folders)}" for r in rows))
    runs = [[read_run(folder) for folder in row.folders] for row in rows]
    targets = [compute_target_loss(run, tolerance) for run in runs[0]]
    base_points = [find_reached(run.rounds, target) for run, target in zip(runs[0], targets, strict=True)]
    codecs = []
    for row, own in zip(rows, runs, strict=True):
        seed_runs = (
            SeedRun(folder, run, target, find_reached(run.rounds, target), base, len(baseline.rounds))
            for folder, run, target, base, baseline in zip(row.folders, own, targets, base_points, runs[0], strict=True)
        )
        codecs.append(CodecResult(row.label, tuple(seed_runs)))
    return Comparison(tolerance, tuple(codecs))
