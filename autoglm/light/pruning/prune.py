"""Structured pruning to a budget: one-shot, or cut by cut with training between.

    settings = PruningSettings(budget=Budget(parameters=240_000))
    pruned = prune(model, task, calibration, settings, seed=0)
    pruned.model.save_pretrained(folder)       # pad_layers(pruned.model) where layers differ

The result is an ordinary GLM; see ``surgery`` for layers of different widths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.light.pruning.calibration import collect_statistics
from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.plan import PruningPlan
from fedglm.autoglm.light.pruning.refitting import apply_plan_and_refit
from fedglm.autoglm.light.pruning.scores import DERIVATIVE_METHODS, score_units
from fedglm.autoglm.light.pruning.selection import Cost, CostModel, choose_plan
from fedglm.autoglm.light.pruning.settings import PruningSettings
from fedglm.autoglm.light.pruning.shape import ModelShape
from fedglm.autoglm.light.pruning.surgery import apply_plan, read_shape
from fedglm.autoglm.tasks.task import Task

Train = Callable[[PreTrainedModel, int], None]
"""Trains a model in place after the cut of that number, counted from 0: ``train_student`` with all but these bound."""
Progress = Callable[[int, ModelShape], None]
"""Called after each cut and its training, with the cuts so far and the model's shape."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Pruned:
    """A model that was cut.

    Attributes:
        model: The smaller model.
        plan: What it keeps of the whole one, in the whole one's numbers.
        shape: Its shape.
    """

    model: PreTrainedModel
    plan: PruningPlan
    shape: ModelShape


def prune(
    model: PreTrainedModel,
    task: Task,
    examples: Examples,
    settings: PruningSettings,
    *,
    seed: int,
    latency: Cost | None = None,
    train: Train | None = None,
    progress: Progress | None = None,
) -> Pruned:
    """Cut a model to a budget; the model given is unchanged.

    With several steps the budget comes down from the whole model's costs along a cubic: most at first, while there is
    most to spare (Zhu and Gupta, arXiv:1710.01878, equation 1).

    Args:
        model: A GLM for language modelling or classification.
        task: Its task.
        examples: Calibration sequences, public or model-made; the first `settings.calibration` are used.
        settings: Budget, scores, what may be cut.
        seed: Seed of random scores.
        latency: Cost function, where the budget limits latency.
        train: Trains after each cut; None trains nothing, which needs one step.
        progress: Called after each cut.

    Raises:
        PruningError: The budget cannot be met, the model is no GLM, or several cuts have no training between.
        DataError: There are no calibration examples.
    """
    if settings.steps > 1 and train is None:
        raise PruningError("several cuts need training between them: give it, or set steps to 1")
    calibration = examples.select(range(min(len(examples), settings.calibration)))
    whole = read_shape(model)
    costs = CostModel(config=model.config.to_dict(), cost=latency)
    latency_of_whole = costs.latency(whole) if settings.budget.latency is not None else None
    small, plan = model, PruningPlan.keep_all(whole)
    for step in range(settings.steps):
        share = 1 - (1 - (step + 1) / settings.steps) ** 3
        statistics = collect_statistics(small, task, calibration, derivatives=settings.method in DERIVATIVE_METHODS)
        scores = score_units(small, statistics, settings.method, seed=seed)
        budget = settings.budget.loosen(share, whole, latency_of_whole)
        cut = choose_plan(read_shape(small), scores, settings, costs, budget)
        small = apply_plan_and_refit(small, cut, statistics) if settings.refit else apply_plan(small, cut)
        plan = plan.then(cut)
        if train is not None:
            train(small, step)
        if progress is not None:
            progress(step + 1, read_shape(small))
    return Pruned(model=small, plan=plan, shape=read_shape(small))
