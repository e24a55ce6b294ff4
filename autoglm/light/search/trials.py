"""Candidates that are made and measured, and the control that they are compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

from transformers import PreTrainedModel

from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.search.measures import Quality, find_rise, measure_loss, measure_quality
from fedglm.autoglm.light.search.pipeline import LightModel, Progress, Source, run_recipe

MeasureBytes = Callable[[LightModel], int]
"""Returns the bytes of a light model's release."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Trial:
    """A candidate that was made.

    Attributes:
        recipe: Its recipe, as it was run.
        light: The model.
        bytes: Bytes of its release.
        held_out_loss: Loss on the sequences that choose.
        quality: Figures on the sequences that measure.
        loss_rise: How much worse it is than the control (`measures.find_rise`).
        in_full: Whether it trained for as many steps as the control.
    """

    recipe: Recipe
    light: LightModel
    bytes: int
    held_out_loss: float
    quality: Quality
    loss_rise: float
    in_full: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class Bench:
    """What every candidate of a search is made from and measured against.

    Attributes:
        source: The adapted dense model and its text.
        plan: The plan.
        dense_model: The dense model as it was given.
        dense: Its figures.
        control: Figures of the equally trained dense control.
        measure_bytes: Measures releases.
    """

    source: Source
    plan: LightenPlan
    dense_model: PreTrainedModel
    dense: Quality
    control: Quality
    measure_bytes: MeasureBytes

    def make(self, recipe: Recipe, *, in_full: bool, progress: Progress) -> Trial:
        """Run a recipe, and measure what it makes.

        Raises:
            TrainingError: A loss or a weight is not finite.
        """
        source = self.source
        light = run_recipe(source, recipe, seed=self.plan.seed, progress=progress)
        model, vocabulary = light.quantized.reference, light.vocabulary
        progress("measure", 0.0)
        quality = measure_quality(model, source.task, source.test, dense=source.model, vocabulary=vocabulary)
        return Trial(
            recipe=recipe,
            light=light,
            bytes=self.measure_bytes(light),
            held_out_loss=measure_loss(model, source.task, source.text.held_out, vocabulary).loss,
            quality=quality,
            loss_rise=self.find_rise(quality),
            in_full=in_full,
        )

    def find_rise(self, quality: Quality) -> float:
        """Return how much worse a model is than the control (`measures.find_rise`)."""
        return find_rise(self.source.task, quality, self.control)


def prepare(source: Source, plan: LightenPlan, measure_bytes: MeasureBytes, *, progress: Progress) -> Bench:
    """Adapt the dense model to the public text, and train and measure the control.

    Candidates start from the adapted model, which is their teacher: a teacher that does not know the text teaches less.
    The control trains as many steps as the adaptation and a candidate together, without a teacher. Both keep their best
    weights on the sequences that choose, those they started from where no step improves them.

    Args:
        source: The dense model and its text.
        plan: The plan.
        measure_bytes: Measures releases.
        progress: Called as the work goes on.

    Raises:
        TrainingError: A loss or a weight is not finite.
    """
    progress("measure the dense model", 0.0)
    dense = measure_quality(source.model, source.task, source.test, dense=source.model)
    adapted = _train_alone(source.model, source, plan, plan.seed, "adapt to the public text", progress)
    control = _train_alone(adapted, source, plan, plan.seed + 1, "train the dense control", progress)
    return Bench(
        source=replace(source, model=adapted),
        plan=plan,
        dense_model=source.model,
        dense=dense,
        control=measure_quality(control, source.task, source.test, dense=source.model),
        measure_bytes=measure_bytes,
    )


def _train_alone(
    model: PreTrainedModel, source: Source, plan: LightenPlan, seed: int, what: str, progress: Progress
) -> PreTrainedModel:
    """Return a copy that trained on the public text without a teacher."""
    copied = copy.deepcopy(model)
    train_student(
        copied,
        None,
        source.text.train,
        plan.training.without_teacher(),
        task=source.task,
        held_out=source.text.held_out,
        seed=seed,
        progress=lambda made: progress(what, made.step / made.steps),
    )
    return copied
