"""Trials of the node's own private training: each asks one thing that differential privacy rests on, and measures it.

Where canaries need many of them and luck, a trial measures directly: how much a unit can move what is released, how
much noise there is and whether it is fresh, who takes part. The trials run the code that nodes run, on the model and
records of the run; tolerances are such that right code fails one of them in less than one audit of ten thousand.
"""

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from fedglm.autoglm.examples import Examples
from fedglm.autoglm.tasks import Task
from fedglm.client.audit_bench import Bench, joined
from fedglm.privacy.dp_sgd import UnitSampler
from fedglm.privacy.mechanism import Mechanism
from fedglm.privacy.noise import GaussianNoise

_QUIET: Final = 1e-4
"""Norm of the noise, in clipping norms, under which a sum shows as it is."""
_NEVER: Final = 1e-9
"""Sampling rate at which no unit is drawn."""
_SIGMAS: Final = 5.0
_ROUNDING: Final = 2e-3
_DRAWS: Final = 400


@dataclass(frozen=True)
class TrialResult:
    """What a trial showed.

    Attributes:
        name: Of the trial.
        passed: Whether the code keeps to what privacy rests on.
        said: What was measured, and what it should be.
    """

    name: str
    passed: bool
    said: str


def run_trials(
    bench: Bench, mechanism: Mechanism, noise: GaussianNoise, only: str | None = None
) -> Iterable[TrialResult]:
    """All trials, one after the other.

    Args:
        bench: Model and records.
        mechanism: Every unit in every step, in the units of the run.
        noise: Draws crafted records.
        only: Name of a trial, which is then the only one.
    """
    one = replace(mechanism, sampling_rate=1.0, steps=1)
    for name, trial in _TRIALS.items():
        if only not in (None, name):
            continue
        try:
            passed, said = trial(bench, one, noise)
        except Exception as exc:
            passed, said = False, f"the training ended with an error: {type(exc).__name__}"
        yield TrialResult(name, passed, said)


def _contribution(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """No record moves the sum by more than a clipping norm, however steep its loss is."""
    crafted = bench.crafted(8, noise)
    steep = float(np.median([np.linalg.norm(bench.gradient(crafted.select([n]))) for n in range(8)]))
    quiet = replace(one, noise_multiplier=_quiet(bench), clipping_norm=max(steep / 20, 1e-6))
    most = max(_norm(bench.released(quiet, crafted.select([number]))) for number in range(8))
    return most <= 1 + _ROUNDING, f"a steep record moves the sum by {most:.3f} clipping norms, at most 1 is right"


def _unit(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """All records of a unit together move the sum by no more than one record may."""
    crafted = bench.crafted(1, noise)
    many = crafted.select([0] * 6)  # the same record: their gradients add up
    steep = _norm(bench.gradient(crafted))
    quiet = replace(one, noise_multiplier=_quiet(bench), clipping_norm=max(steep / 20, 1e-6), records_per_unit=6)
    most = _norm(bench.released(quiet, many))
    return most <= 1 + _ROUNDING, f"a unit of six records moves the sum by {most:.3f} clipping norms, at most 1"


def _records(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """Of a unit, a step looks at no more records than it may."""
    crafted = bench.crafted(6, noise)
    own = np.stack([bench.gradient(crafted.select([number])) for number in range(6)])
    unit = replace(crafted, units=torch.zeros(6, dtype=torch.int64))
    moved = bench.released(replace(one, noise_multiplier=_quiet(bench), records_per_unit=1), unit)
    alike = float((own @ moved / (np.linalg.norm(own, axis=1) * _norm(moved))).max())
    return alike >= 1 - _ROUNDING, f"one record of a unit of six is looked at: alike by {alike:.3f}, 1 is right"


def _independence(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """What a record adds to the sum does not depend on the others."""
    crafted = bench.crafted(9, noise)
    others, own = crafted.select(range(8)), crafted.select([8])
    norms = [_norm(bench.gradient(crafted.select([number]))) for number in range(9)]
    quiet = replace(one, noise_multiplier=_quiet(bench), clipping_norm=2 * max(norms))
    off = _norm(bench.released(quiet, joined(others, own)) - bench.released(quiet, others) - bench.released(quiet, own))
    share = off / (norms[8] / quiet.clipping_norm)
    return share <= 0.02, f"a record's part changes by {share:.1%} when others are there, 0 % is right"


def _broken(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """A record whose gradient is not finite adds nothing that shows, and spoils nothing."""
    crafted = bench.crafted(2, noise)
    quiet = replace(one, noise_multiplier=_quiet(bench))
    with_it = _spoiled(bench, crafted).released(quiet, crafted)
    without = bench.released(quiet, crafted.select([1]))
    off = _norm(with_it - without)
    return (
        off <= _ROUNDING,
        f"a record whose loss is not a number moves the sum by {off:.3f} clipping norms, 0 is right",
    )


def _scale(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """The noise has its full scale where nobody was drawn, once a step, on every coordinate."""
    steps = 4
    alone = bench.released(replace(one, sampling_rate=_NEVER, steps=steps), bench.crafted(4, noise))
    return _is_noise(alone, one.noise_multiplier * steps**0.5, "with nobody drawn")


def _once(bench: Bench, one: Mechanism, noise: GaussianNoise) -> tuple[bool, str]:
    """The noise has its scale where all were drawn, in whatever pieces they were looked at."""
    crafted = bench.crafted(6, noise)
    first, second = (bench.released(one, crafted, micro_batch_size=1) for _ in range(2))
    return _is_noise((first - second) / 2**0.5, one.noise_multiplier, "with all drawn")


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
    sizes, each = drawn.sum(axis=1), drawn.mean(axis=0)
    variance = rate * (1 - rate)
    mean_off = abs(sizes.mean() - units * rate) / (units * variance / _DRAWS) ** 0.5
    spread = float(sizes.var(ddof=1)) / (units * variance)
    spread_limit = _SIGMAS * (2 / (_DRAWS - 1)) ** 0.5
    unit_off = float(np.abs(each - rate).max()) / (variance / _DRAWS) ** 0.5
    passed = mean_off <= _SIGMAS and abs(spread - 1) <= spread_limit and unit_off <= _SIGMAS + 1
    return passed, f"samples' sizes have {spread:.2f} times a Poisson sample's spread, 1 is right"


_TRIALS: Final[dict[str, Callable[[Bench, Mechanism, GaussianNoise], tuple[bool, str]]]] = {
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


def _is_noise(values: npt.NDArray[np.float64], expected: float, when: str) -> tuple[bool, str]:
    """Whether values are normal with that spread and mean 0."""
    count = len(values)
    ratio = float(values.std()) / expected
    mean = abs(float(values.mean())) / (expected / count**0.5)
    tail = float(np.mean(np.abs(values) > 2 * expected))
    likely = 0.0455
    off = abs(tail - likely) / (likely * (1 - likely) / count) ** 0.5
    passed = abs(ratio - 1) <= _SIGMAS / (2 * count) ** 0.5 and mean <= _SIGMAS and off <= _SIGMAS
    return passed, f"{when} it has {ratio:.3f} times the spread that is claimed, 1 is right"


def _quiet(bench: Bench) -> float:
    """The noise multiplier for that: noise is on every coordinate."""
    return float(_QUIET / bench.size**0.5)


def _norm(vector: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(vector))


def _spoiled(bench: Bench, records: Examples) -> Bench:
    """A bench whose task gives the first of some records a loss that is not a number."""
    right, first = bench.task.sequence_losses, records.input_ids[0].to(torch.int64)

    class Spoiled(Task):
        def sequence_losses(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            losses = right(model, batch)
            bad = (batch["input_ids"] == first.to(losses.device)).all(dim=1)
            return losses * torch.where(bad, float("nan"), 1.0)

    return replace(bench, task=Spoiled(**{field.name: getattr(bench.task, field.name) for field in fields(Task)}))
