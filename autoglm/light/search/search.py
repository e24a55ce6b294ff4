"""The search for a light model: candidates that meet the size, tried briefly, the best of them trained in full.

A candidate's size is known before it is trained, for training changes the codes and hardly their length; its loss is
not. So the size is met first, by cutting no more than a family's codes need (`families.fit_parameters`), and the losses
of the few candidates are compared by successive halving. There are at most a dozen, each with one free number, which
bisection finds: an optimizer library has nothing to add here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from fedglm.autoglm.light.distillation.settings import DistillationSettings
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.pruning.settings import Budget, PruningSettings
from fedglm.autoglm.light.search.pipeline import LightModel, Progress
from fedglm.autoglm.light.search.trials import Bench, Trial

Excess = Callable[[LightModel], float]
"""Returns how far a light model's costs are above the goals, as a share of them."""

_CORRECTIONS: Final = 2
_MAX_DRIFT: Final = 0.15
_MARGIN: Final = 0.005


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """What a search came to.

    Attributes:
        trials: All candidates that were made, in their order.
        ranked: Those of them that trained in full and meet all goals, the least loss first.
        interrupted: Whether the user ended the search early.
    """

    trials: tuple[Trial, ...]
    ranked: tuple[Trial, ...]
    interrupted: bool


def search(bench: Bench, measure_excess: Excess, *, stopped: Callable[[], bool], progress: Progress) -> Found:
    """Search for the model of least loss that meets a plan's goals.

    Args:
        bench: What candidates are made from, with the plan.
        measure_excess: Measures what a light model costs, against the goals.
        stopped: Asked between candidates whether to end the search with what there is.
        progress: Called as the work goes on.

    Raises:
        TrainingError: A loss or a weight is not finite.
    """
    plan, trials, good = bench.plan, list[Trial](), list[Trial]()
    for candidate, tried in _choose_finalists(bench, trials, stopped, progress):
        if stopped():
            break
        # What the codes grew in the trial, they grow in full at the least.
        recipe = candidate if tried is None else _correct(candidate, tried, measure_excess)
        trials.append(bench.make(recipe, in_full=True, progress=_name(progress, recipe.name)))
        excess = measure_excess(trials[-1].light)
        for attempt in range(1, 1 + _CORRECTIONS):
            margin = _MARGIN * (1 + attempt)
            tighter = None if excess <= 0 or stopped() else tighten(recipe, trials[-1], excess, margin)
            if tighter is None:
                break
            trials.append(bench.make(tighter, in_full=True, progress=_name(progress, tighter.name)))
            excess = measure_excess(trials[-1].light)
        if excess <= 0 and trials[-1].loss_rise <= plan.goals.tolerance:
            good.append(trials[-1])
    ranked = tuple(sorted(good, key=lambda trial: trial.held_out_loss))
    return Found(trials=tuple(trials), ranked=ranked, interrupted=stopped())


def find_frontier(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the trials that no other beats in both bytes and loss, from the smallest to the greatest loss."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda one: (one.bytes, one.loss_rise)):
        if not kept or trial.loss_rise < kept[-1].loss_rise:
            kept.append(trial)
    return tuple(reversed(kept))


def _choose_finalists(
    bench: Bench, trials: list[Trial], stopped: Callable[[], bool], progress: Progress
) -> Sequence[tuple[Recipe, Trial | None]]:
    """Return the candidates that train in full, each with its trial.

    All train where they are few, untried; else those that were the best after a part of the steps.
    """
    plan = bench.plan
    if len(plan.candidates) <= plan.finalists:
        return [(recipe, None) for recipe in plan.candidates]
    ranked: list[tuple[float, int]] = []
    for number, recipe in enumerate(plan.candidates):
        if stopped():
            break
        short = shorten(recipe, plan.trial_share)
        trials.append(bench.make(short, in_full=False, progress=_name(progress, f"try {recipe.name}")))
        ranked.append((trials[-1].held_out_loss, number))
    return [(plan.candidates[number], trials[number]) for _, number in sorted(ranked)[: plan.finalists]]


def _correct(recipe: Recipe, tried: Trial, measure_excess: Excess) -> Recipe:
    """Return the recipe, with fewer parameters if its trial came out too large."""
    excess = measure_excess(tried.light)
    return (tighten(recipe, tried, excess, _MARGIN) if excess > 0 else None) or recipe


def shorten(recipe: Recipe, share: float) -> Recipe:
    """Return a recipe whose trainings have a share of their steps."""
    changes: dict[str, object] = {}
    if recipe.recovery is not None:
        changes["recovery"] = _shorten(recipe.recovery, share)
    if (qat := recipe.quantization.qat) is not None:
        short = qat.model_copy(update={"training": _shorten(qat.training, share)})
        changes["quantization"] = recipe.quantization.model_copy(update={"qat": short})
    return recipe.model_copy(update=changes)


def tighten(recipe: Recipe, trial: Trial, excess: float, margin: float) -> Recipe | None:
    """Return a recipe with fewer parameters, for training made the codes longer than they were; None if far too long.

    Args:
        recipe: The recipe.
        trial: What it made.
        excess: How far its costs are above the goals, as a share of them.
        margin: How far below the goals to aim, as a share of them.
    """
    if excess > _MAX_DRIFT:
        return None
    parameters = sum(parameter.numel() for parameter in trial.light.quantized.reference.parameters())
    budget = Budget(parameters=int(parameters * (1 - excess - margin)))
    base = recipe.pruning or PruningSettings(budget=budget)
    name = f"{recipe.name.split(',')[0]}, {budget.parameters:,} parameters"
    return recipe.model_copy(update={"name": name, "pruning": base.model_copy(update={"budget": budget})})


def _shorten(settings: DistillationSettings, share: float) -> DistillationSettings:
    stages = tuple(
        stage.model_copy(
            update={
                "steps": max(1, round(share * stage.steps)),
                "warmup_steps": round(share * stage.warmup_steps),
            }
        )
        for stage in settings.stages
    )
    return settings.model_copy(update={"stages": stages})


def _name(progress: Progress, name: str) -> Progress:
    return lambda what, share: progress(f"{name}: {what}", share)
