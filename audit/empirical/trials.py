"""Trials of the node's own private training: each measures one thing that differential privacy rests on.

Where canaries need many samples and luck, a trial measures directly: how much a unit can move the released update, how
much noise there is and whether it is fresh, who takes part. The trials run the code that nodes run, on the model and
records of the run. Random measurements have limits such that correct code fails one in less than one audit of a hundred
thousand; rounded ones have tolerances that were measured, wider where passes compute in bfloat16.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binom, chi2  # type: ignore[import-untyped]

from fedglm.audit.empirical.noise_checks import find_noise_faults
from fedglm.audit.empirical.probe import TrainingProbe
from fedglm.autoglm.data.examples import Examples, concatenate
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.training.local import TrainingError
from fedglm.privacy.dp.dp_sgd import UnitSampler
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.dp.noise import GaussianNoise

_QUIET_NORM: Final = 1e-4
"""Norm of the noise, in clipping norms, under which a sum can be read exactly."""
_QUIET_RATE: Final = 1e-9
"""Sampling rate at which no unit is drawn."""
_NORM_TOLERANCE: Final = 2e-3
"""Relative excess of a contribution over its bound: norms are in float32 whatever the pass computes in."""
_SIGMAS: Final = 5.5
_ALARM: Final = 1e-6
"""Probability that the trial of the sampling fails for correct code; of the others it is less."""
_DRAWS: Final = 400


@dataclass(frozen=True)
class TrialResult:
    """Result of a trial.

    Attributes:
        name: Name of the trial.
        outcome: Whether the code does what privacy rests on; `not made` if the training ended with an error, such as a
            lack of memory, which shows neither.
        detail: Measured value and expected value; or the error.
    """

    name: str
    outcome: Literal["passed", "failed", "not made"]
    detail: str


def run_trials(probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> Iterable[TrialResult]:
    """Run all trials, one after the other; arguments as for `run_trial`."""
    return (run_trial(name, probe, mechanism, noise) for name in TRIALS)


def run_trial(name: str, probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> TrialResult:
    """Run one trial.

    Args:
        name: One of `TRIALS`.
        probe: Model and records.
        mechanism: Mechanism of the run; the trial uses it with every unit in a single step.
        noise: Source of randomness for crafted records.
    """
    try:
        passed, detail = TRIALS[name](probe, replace(mechanism, sampling_rate=1.0, steps=1), noise)
    except Exception as exc:
        first = (str(exc).splitlines() or [""])[0][:300]
        return TrialResult(name, "not made", f"the training ended with {type(exc).__name__}: {first}".rstrip(": "))
    return TrialResult(name, "passed" if passed else "failed", detail)


def _try_contribution(probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Try whether a record can move the sum by more than a clipping norm, however steep its loss is."""
    crafted = probe.craft_records(8, noise)
    steep = float(np.median([np.linalg.norm(probe.compute_gradient(crafted.select([n]))) for n in range(8)]))
    quiet = replace(mechanism, noise_multiplier=_get_quiet_multiplier(probe), clipping_norm=max(steep / 20, 1e-6))
    largest = max(_compute_norm(probe.release(quiet, crafted.select([number]))) for number in range(8))
    detail = f"a steep record moves the sum by {largest:.3f} clipping norms, at most 1 is right"
    return largest <= 1 + _NORM_TOLERANCE, detail


def _try_unit(probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Try whether all records of a unit together can move the sum by more than one record may."""
    crafted = probe.craft_records(1, noise)
    many = crafted.select([0] * 6)  # the same record: their gradients add up
    steep = _compute_norm(probe.compute_gradient(crafted))
    quiet = replace(
        mechanism,
        noise_multiplier=_get_quiet_multiplier(probe),
        clipping_norm=max(steep / 20, 1e-6),
        records_per_unit=6,
    )
    largest = _compute_norm(probe.release(quiet, many))
    detail = f"a unit of six records moves the sum by {largest:.3f} clipping norms, at most 1"
    return largest <= 1 + _NORM_TOLERANCE, detail


def _try_records(probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Try whether a step uses more records of a unit than it may."""
    crafted = probe.craft_records(6, noise)
    unit = replace(crafted, units=torch.zeros(6, dtype=torch.int64))
    moved = probe.release(replace(mechanism, noise_multiplier=_get_quiet_multiplier(probe), records_per_unit=1), unit)
    gradients = (probe.compute_gradient(crafted.select([number])).astype(np.float64) for number in range(6))
    similarity = max(float(row @ moved) / (_compute_norm(row) * _compute_norm(moved)) for row in gradients)
    required = 1 - _get_tolerance(probe, 2e-3, 2e-2)
    return similarity >= required, f"one record of a unit of six is looked at: alike by {similarity:.3f}, 1 is right"


def _try_independence(probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Try whether what a record adds to the sum depends on the other records."""
    crafted = probe.craft_records(9, noise)
    others, own = crafted.select(range(8)), crafted.select([8])
    norms = [_compute_norm(probe.compute_gradient(crafted.select([number]))) for number in range(9)]
    quiet = replace(mechanism, noise_multiplier=_get_quiet_multiplier(probe), clipping_norm=2 * max(norms))
    difference = _compute_norm(
        probe.release(quiet, concatenate([others, own])) - probe.release(quiet, others) - probe.release(quiet, own)
    )
    share = difference / (norms[8] / quiet.clipping_norm)
    tolerance = _get_tolerance(probe, 0.02, 0.2)
    return share <= tolerance, f"a record's part changes by {share:.1%} when others are there, 0 % is right"


def _try_broken_record(probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Try whether a record whose gradient is not finite shows in the sum, or spoils it."""
    crafted = probe.craft_records(2, noise)
    quiet = replace(mechanism, noise_multiplier=_get_quiet_multiplier(probe))
    without = probe.release(quiet, crafted.select([1]))
    try:
        difference = _compute_norm(_with_broken_record(probe, crafted).release(quiet, crafted) - without)
    except TrainingError as exc:
        return False, f"a record whose loss is not a number spoils the round: {exc}"
    return (
        difference <= _get_tolerance(probe, 2e-3, 5e-2),
        f"a record whose loss is not a number moves the sum by {difference:.3f} clipping norms, 0 is right",
    )


def _try_noise_nobody_drawn(probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Try whether the noise has its full scale if nobody was drawn, once per step, on every part of the model."""
    steps = 4
    alone = probe.release(replace(mechanism, sampling_rate=_QUIET_RATE, steps=steps), probe.craft_records(4, noise))
    return _check_noise(probe, alone, mechanism.noise_multiplier * steps**0.5, "with nobody drawn")


def _try_noise_all_drawn(probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Try whether the noise has its scale if all were drawn, whatever the size of micro-batches."""
    crafted = probe.craft_records(6, noise)
    first, second = (probe.release(mechanism, crafted, micro_batch_size=1) for _ in range(2))
    return _check_noise(probe, (first - second) / 2**0.5, mechanism.noise_multiplier, "with all drawn")


def _try_fresh_noise(probe: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Try whether any seed reproduces the noise."""
    crafted, runs = probe.craft_records(4, noise), []
    for _ in range(2):
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)
        runs.append(probe.release(replace(mechanism, sampling_rate=_QUIET_RATE), crafted))
    first, second = (run - run.mean() for run in runs)
    correlation = float(first @ second / max(_compute_norm(first) * _compute_norm(second), 1e-30))
    passed = min(_compute_norm(first), _compute_norm(second)) > 0 and abs(correlation) <= _SIGMAS / probe.size**0.5
    return passed, f"two runs of the same seeds have noise that correlates by {correlation:+.4f}, 0 is right"


def _try_sampling(_: TrainingProbe, mechanism: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Try whether each unit is drawn by an independent coin in every step."""
    units, rate = 200, 0.3
    sampler = UnitSampler(np.arange(units), replace(mechanism, sampling_rate=rate), noise)
    drawn = np.zeros((_DRAWS, units), bool)
    for row in drawn:
        row[[int(records[0]) for records in sampler.draw()]] = True
    sizes = drawn.sum(axis=1)
    chance = _ALARM / 4
    spread = float(sizes.var(ddof=1)) / (units * rate * (1 - rate))
    passed = (
        _is_plausible(int(drawn.sum()), _DRAWS * units, rate, chance)
        and all(_is_plausible(int(times), _DRAWS, rate, chance / units) for times in drawn.sum(axis=0))
        and chance / 2 < chi2.cdf(spread * (_DRAWS - 1), _DRAWS - 1) < 1 - chance / 2
    )
    return passed, f"samples' sizes have {spread:.2f} times a Poisson sample's spread, 1 is right"


TRIALS: Final[dict[str, Callable[[TrainingProbe, Mechanism, GaussianNoise], tuple[bool, str]]]] = {
    "contribution of a record": _try_contribution,
    "contribution of a unit": _try_unit,
    "records of a unit": _try_records,
    "independence of records": _try_independence,
    "a broken record": _try_broken_record,
    "noise, nobody drawn": _try_noise_nobody_drawn,
    "noise, all drawn": _try_noise_all_drawn,
    "fresh noise": _try_fresh_noise,
    "sampling": _try_sampling,
}
"""Trials by their names."""


def _check_noise(probe: TrainingProbe, values: npt.NDArray[np.float64], expected: float, when: str) -> tuple[bool, str]:
    """Check that values are normal noise of that spread on every part of the model, and no value is used twice.

    Returns:
        Whether they are, and a description.
    """
    faults = find_noise_faults(values, expected, probe.parts)
    spread = f"{when} it has {float(values.std()) / expected:.3f} times the spread that is claimed, 1 is right"
    faults_shown = "; ".join(faults[:3])
    return not faults, f"{spread}, on each of {len(probe.parts)} parts" if not faults else f"{when}: {faults_shown}"


def _is_plausible(count: int, trials: int, probability: float, level: float) -> bool:
    """Return whether a binomial count is neither too small nor too large at a level."""
    return bool(min(binom.cdf(count, trials, probability), binom.sf(count - 1, trials, probability)) > level / 2)


def _get_tolerance(probe: TrainingProbe, single: float, half: float) -> float:
    """Return the tolerance for the format that passes compute in."""
    return single if probe.precision.name == "fp32" else half


def _get_quiet_multiplier(probe: TrainingProbe) -> float:
    """Return the noise multiplier at which the norm of all noise is `_QUIET_NORM` clipping norms."""
    return float(_QUIET_NORM / probe.size**0.5)


def _compute_norm(vector: npt.NDArray[np.floating[Any]]) -> float:
    return float(np.linalg.norm(vector))


def _with_broken_record(probe: TrainingProbe, records: Examples) -> TrainingProbe:
    """Return a probe whose task gives the first of some records a loss that is not a number."""
    sequence_losses, first = probe.task.sequence_losses, records.input_ids[0].to(torch.int64)

    def broken_losses(_: Task, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        losses = sequence_losses(model, batch)
        is_broken = (batch["input_ids"] == first.to(losses.device)).all(dim=1)
        return losses * torch.where(is_broken, float("nan"), 1.0)

    task = type("BrokenTask", (type(probe.task),), {"sequence_losses": broken_losses})
    return replace(probe, task=task(**{field.name: getattr(probe.task, field.name) for field in fields(probe.task)}))
