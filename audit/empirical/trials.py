"""Trials of the node's own private training: each asks one thing that differential privacy rests on, and measures it.

Where canaries need many of them and luck, a trial measures directly: how much a unit can move what is released, how
much noise there is and whether it is fresh, who takes part. The trials run the code that nodes run, on the model and
records of the run. What is random in them has limits such that right code fails one in less than one audit of a
hundred thousand; what is rounded has tolerances that were measured, wider where passes compute in bfloat16.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binom, chi2  # type: ignore[import-untyped]

from fedglm.audit.empirical.noise_checks import noise_faults
from fedglm.audit.empirical.probe import Bench
from fedglm.autoglm.data.examples import Examples, concatenate
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.training.local import TrainingError
from fedglm.privacy.dp.dp_sgd import UnitSampler
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise

_QUIET: Final = 1e-4
"""Norm of the noise, in clipping norms, under which a sum shows as it is."""
_NEVER: Final = 1e-9
"""Sampling rate at which no unit is drawn."""
_BOUND: Final = 2e-3
"""By which a contribution may exceed its bound: norms are in float32 whatever the pass computes in."""
_SIGMAS: Final = 5.5
_ALARM: Final = 1e-6
"""Probability that the trial of the sampling fails right code; of the others it is less."""
_DRAWS: Final = 400


@dataclass(frozen=True)
class TrialResult:
    """What a trial showed.

    Attributes:
        name: Of the trial.
        outcome: Whether the code keeps to what privacy rests on; `not made` where the training ended with an error, as
            where memory ran out, which shows neither.
        said: What was measured, and what it should be; or the error.
    """

    name: str
    outcome: Literal["passed", "failed", "not made"]
    said: str


def run_trials(bench: Bench, mechanism: Mechanism, noise: GaussianNoise) -> Iterable[TrialResult]:
    """All trials, one after the other; arguments as of `run_trial`."""
    return (run_trial(name, bench, mechanism, noise) for name in TRIALS)


def run_trial(name: str, bench: Bench, mechanism: Mechanism, noise: GaussianNoise) -> TrialResult:
    """One trial.

    Args:
        name: One of `TRIALS`.
        bench: Model and records.
        mechanism: Every unit in every step, in the units of the run.
        noise: Draws crafted records.
    """
    try:
        passed, said = TRIALS[name](bench, replace(mechanism, sampling_rate=1.0, steps=1), noise)
    except Exception as exc:
        first = (str(exc).splitlines() or [""])[0][:300]
        return TrialResult(name, "not made", f"the training ended with {type(exc).__name__}: {first}".rstrip(": "))
    return TrialResult(name, "passed" if passed else "failed", said)


def _contribution(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """No record moves the sum by more than a clipping norm, however steep its loss is."""
    crafted = bench.crafted(8, noise)
    steep = float(np.median([np.linalg.norm(bench.gradient(crafted.select([n]))) for n in range(8)]))
    quiet = replace(one, noise_multiplier=_quiet(bench), clipping_norm=max(steep / 20, 1e-6))
    most = max(_norm(bench.released(quiet, crafted.select([number]))) for number in range(8))
    return most <= 1 + _BOUND, f"a steep record moves the sum by {most:.3f} clipping norms, at most 1 is right"


def _unit(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """All records of a unit together move the sum by no more than one record may."""
    crafted = bench.crafted(1, noise)
    many = crafted.select([0] * 6)  # the same record: their gradients add up
    steep = _norm(bench.gradient(crafted))
    quiet = replace(one, noise_multiplier=_quiet(bench), clipping_norm=max(steep / 20, 1e-6), records_per_unit=6)
    most = _norm(bench.released(quiet, many))
    return most <= 1 + _BOUND, f"a unit of six records moves the sum by {most:.3f} clipping norms, at most 1"


def _records(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Of a unit, a step looks at no more records than it may."""
    crafted = bench.crafted(6, noise)
    unit = replace(crafted, units=torch.zeros(6, dtype=torch.int64))
    moved = bench.released(replace(one, noise_multiplier=_quiet(bench), records_per_unit=1), unit)
    own = (bench.gradient(crafted.select([number])).astype(np.float64) for number in range(6))
    alike = max(float(row @ moved) / (_norm(row) * _norm(moved)) for row in own)
    least = 1 - _rounding(bench, 2e-3, 2e-2)
    return alike >= least, f"one record of a unit of six is looked at: alike by {alike:.3f}, 1 is right"


def _independence(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """What a record adds to the sum does not depend on the others."""
    crafted = bench.crafted(9, noise)
    others, own = crafted.select(range(8)), crafted.select([8])
    norms = [_norm(bench.gradient(crafted.select([number]))) for number in range(9)]
    quiet = replace(one, noise_multiplier=_quiet(bench), clipping_norm=2 * max(norms))
    off = _norm(
        bench.released(quiet, concatenate([others, own])) - bench.released(quiet, others) - bench.released(quiet, own)
    )
    share = off / (norms[8] / quiet.clipping_norm)
    most = _rounding(bench, 0.02, 0.2)
    return share <= most, f"a record's part changes by {share:.1%} when others are there, 0 % is right"


def _broken(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """A record whose gradient is not finite adds nothing that shows, and spoils nothing."""
    crafted = bench.crafted(2, noise)
    quiet = replace(one, noise_multiplier=_quiet(bench))
    without = bench.released(quiet, crafted.select([1]))
    try:
        off = _norm(_spoiled(bench, crafted).released(quiet, crafted) - without)
    except TrainingError as exc:
        return False, f"a record whose loss is not a number spoils the round: {exc}"
    return (
        off <= _rounding(bench, 2e-3, 5e-2),
        f"a record whose loss is not a number moves the sum by {off:.3f} clipping norms, 0 is right",
    )


def _scale(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """The noise has its full scale where nobody was drawn, once a step, on every part of the model."""
    steps = 4
    alone = bench.released(replace(one, sampling_rate=_NEVER, steps=steps), bench.crafted(4, noise))
    return _is_noise(bench, alone, one.noise_multiplier * steps**0.5, "with nobody drawn")


def _once(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """The noise has its scale where all were drawn, in whatever pieces they were looked at."""
    crafted = bench.crafted(6, noise)
    first, second = (bench.released(one, crafted, micro_batch_size=1) for _ in range(2))
    return _is_noise(bench, (first - second) / 2**0.5, one.noise_multiplier, "with all drawn")


def _fresh(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """No seed brings the same noise again."""
    crafted, runs = bench.crafted(4, noise), []
    for _ in range(2):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        runs.append(bench.released(replace(one, sampling_rate=_NEVER), crafted))
    first, second = (run - run.mean() for run in runs)
    alike = float(first @ second / max(_norm(first) * _norm(second), 1e-30))
    passed = min(_norm(first), _norm(second)) > 0 and abs(alike) <= _SIGMAS / bench.size**0.5
    return passed, f"two runs of the same seeds have noise that correlates by {alike:+.4f}, 0 is right"


def _sampling(_: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Each unit is drawn by a coin of its own, in every step anew."""
    units, rate = 200, 0.3
    sampler = UnitSampler(np.arange(units), replace(one, sampling_rate=rate), noise)
    drawn = np.zeros((_DRAWS, units), bool)
    for row in drawn:
        row[[int(records[0]) for records in sampler.draw()]] = True
    sizes = drawn.sum(axis=1)
    chance = _ALARM / 4
    spread = float(sizes.var(ddof=1)) / (units * rate * (1 - rate))
    passed = (
        _within(int(drawn.sum()), _DRAWS * units, rate, chance)
        and all(_within(int(times), _DRAWS, rate, chance / units) for times in drawn.sum(axis=0))
        and chance / 2 < chi2.cdf(spread * (_DRAWS - 1), _DRAWS - 1) < 1 - chance / 2
    )
    return passed, f"samples' sizes have {spread:.2f} times a Poisson sample's spread, 1 is right"


TRIALS: Final[dict[str, Callable[[Bench, Mechanism, GaussianNoise], tuple[bool, str]]]] = {
    "contribution of a record": _contribution,
    "contribution of a unit": _unit,
    "records of a unit": _records,
    "independence of records": _independence,
    "a broken record": _broken,
    "noise, nobody drawn": _scale,
    "noise, all drawn": _once,
    "fresh noise": _fresh,
    "sampling": _sampling,
}
"""Each by its name."""


def _is_noise(bench: Bench, values: npt.NDArray[np.float64], expected: float, when: str) -> tuple[bool, str]:
    """Whether values are normal noise of that spread on every part of the model, and no value serves twice."""
    faults = noise_faults(values, expected, bench.parts)
    said = f"{when} it has {float(values.std()) / expected:.3f} times the spread that is claimed, 1 is right"
    shown = "; ".join(faults[:3])
    return not faults, f"{said}, on each of {len(bench.parts)} parts" if not faults else f"{when}: {shown}"


def _within(seen: int, of: int, chance: float, level: float) -> bool:
    """Whether so many of so many are no wonder."""
    return bool(min(binom.cdf(seen, of, chance), binom.sf(seen - 1, of, chance)) > level / 2)


def _rounding(bench: Bench, single: float, half: float) -> float:
    """A tolerance, by the format that passes compute in."""
    return single if bench.precision.name == "fp32" else half


def _quiet(bench: Bench) -> float:
    """The noise multiplier for that: noise is on every coordinate."""
    return float(_QUIET / bench.size**0.5)


def _norm(vector: npt.NDArray[np.floating[Any]]) -> float:
    return float(np.linalg.norm(vector))


def _spoiled(bench: Bench, records: Examples) -> Bench:
    """A bench whose task gives the first of some records a loss that is not a number."""
    right, first = bench.task.sequence_losses, records.input_ids[0].to(torch.int64)

    def spoiled(_: Task, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        losses = right(model, batch)
        bad = (batch["input_ids"] == first.to(losses.device)).all(dim=1)
        return losses * torch.where(bad, float("nan"), 1.0)

    like = type("Spoiled", (type(bench.task),), {"sequence_losses": spoiled})
    return replace(bench, task=like(**{field.name: getattr(bench.task, field.name) for field in fields(bench.task)}))
