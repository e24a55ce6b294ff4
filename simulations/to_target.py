"""Bytes and rounds to equal loss: how soon, and for how many bytes, a run gets to where another one ended."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedglm.simulations.run_record import RoundRecord, RunRecord, Traffic, read_run

TOLERANCE = 1.01


@dataclass(frozen=True)
class ComparisonRow:
    """One run that is compared: what it is called, and its folder."""

    label: str
    run: Path


@dataclass(frozen=True)
class Reached:
    """The first round at or below the target, and all bytes sent until its end, that round's included."""

    round: int
    traffic: Traffic


@dataclass(frozen=True)
class Standing:
    """One run against the target; `ratio` is its bytes to the target over the first run's, both ways."""

    label: str
    folder: Path
    run: RunRecord
    reached: Reached | None
    ratio: float | None


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, the baseline first; `target` is its final loss times `tolerance` (None: not finite)."""

    tolerance: float
    target: float | None
    standings: tuple[Standing, ...]


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
    """Reads the runs and measures each against the first.

    Args:
        rows: The runs, the baseline (dense, as a rule) first.
        tolerance: The factor on the baseline's final loss that still counts as equal.

    Raises:
        ReportError: A folder does not hold a finished run.
        ValueError: No run was given, or the tolerance is below 1.
    """
    if not rows:
        raise ValueError("nothing to compare: give at least one run, the dense one first")
    runs = [read_run(row.run) for row in rows]
    target = target_loss(runs[0], tolerance)
    reached = [reach(run.rounds, target) for run in runs]
    base = reached[0].traffic.total if reached[0] else 0
    standings = tuple(
        Standing(row.label, row.run, run, got, got.traffic.total / base if got and base else None)
        for row, run, got in zip(rows, runs, reached, strict=True)
    )
    return Comparison(tolerance, target, standings)
