"""Candidates that are made and measured, and the control that they are compared with."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel

from fedglm.autoglm.light.distillation.settings import DistillationSettings
from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan, train_more
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.search.measures import Quality, find_rise, measure_loss, measure_quality
from fedglm.autoglm.light.search.pipeline import LightModel, Progress, Source, run_recipe
from fedglm.autoglm.light.search.trial_cache import MeasuredModel, TrialCache

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
        loss_rise: How much worse it is than a control that trained as long (`measures.find_rise`).
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
class Control:
    """A dense model that trained as long as a candidate.

    Attributes:
        model: The model.
        quality: Its figures on the sequences that measure.
    """

    model: PreTrainedModel
    quality: Quality


@dataclass(frozen=True, eq=False, kw_only=True)
class Bench:
    """What every candidate of a search is made from and measured against.

    Attributes:
        source: The adapted dense model and its text.
        plan: The plan.
        dense_model: The dense model as it was given.
        dense: Its figures.
        control: The dense control, which trained for as many steps as the plan says.
        measure_bytes: Measures releases.
        cache: What earlier searches made.
    """

    source: Source
    plan: LightenPlan
    dense_model: PreTrainedModel
    dense: Quality
    control: Control
    measure_bytes: MeasureBytes
    cache: TrialCache
    _longer: dict[int, Control] = field(default_factory=dict)

    def make(self, recipe: Recipe, *, in_full: bool, progress: Progress) -> Trial:
        """Run a recipe, and measure what it makes; or take both from an earlier search.

        Raises:
            TrainingError: A loss or a weight is not finite.
        """

        def run() -> MeasuredModel:
            light = run_recipe(self.source, recipe, seed=self.plan.seed, progress=progress)
            progress("measure", 0.0)
            return self.measure(light)

        made = self.cache.make_light(self.source, recipe, self.plan.seed, run)
        return Trial(
            recipe=recipe,
            light=made.light,
            bytes=self.measure_bytes(made.light),
            held_out_loss=made.held_out_loss,
            quality=made.quality,
            loss_rise=find_rise(self.source.task, made.quality, self.find_control(recipe, progress).quality),
            in_full=in_full,
        )

    def measure(self, light: LightModel) -> MeasuredModel:
        """Measure a light model."""
        source, model, vocabulary = self.source, light.quantized.reference, light.vocabulary
        return MeasuredModel(
            light=light,
            quality=measure_quality(model, source.task, source.test, dense=source.model, vocabulary=vocabulary),
            held_out_loss=measure_loss(model, source.task, source.text.held_out, vocabulary).loss,
        )

    def find_rise(self, quality: Quality) -> float:
        """Return how much worse a model is than the control (`measures.find_rise`)."""
        return find_rise(self.source.task, quality, self.control.quality)

    def find_control(self, recipe: Recipe, progress: Progress) -> Control:
        """Return the control of a recipe: the plan's, trained on where the recipe trains longer than the plan says."""
        more = recipe.steps - self.plan.training.steps
        if more <= 0:
            return self.control
        if more not in self._longer:
            start = replace(self.source, model=self.control.model)
            whole = train_more(self.plan.training.without_teacher(), more)
            last = whole.model_copy(update={"stages": whole.stages[-1:]})
            self._longer[more] = _make_control(start, self.dense_model, last, self.plan.seed + 2, self.cache, progress)
        return self._longer[more]


def prepare(
    source: Source, plan: LightenPlan, measure_bytes: MeasureBytes, *, cache: TrialCache, progress: Progress
) -> Bench:
    """Adapt the dense model to the public text, and train and measure the control.

    Candidates start from the adapted model, which is their teacher: a teacher that does not know the text teaches less.
    The control trains as many steps as the adaptation and a candidate together, without a teacher. Both keep their best
    weights on the sequences that choose, those they started from where no step improves them.

    Args:
        source: The dense model and its text.
        plan: The plan.
        measure_bytes: Measures releases.
        cache: What earlier searches made.
        progress: Called as the work goes on.

    Raises:
        TrainingError: A loss or a weight is not finite.
    """
    progress("measure the dense model", 0.0)
    training, what = plan.training.without_teacher(), "adapt to the public text"
    adapted = replace(
        source,
        model=cache.train(
            source, training, plan.seed, lambda: _train_alone(source, training, plan.seed, what, progress)
        ),
    )
    return Bench(
        source=adapted,
        plan=plan,
        dense_model=source.model,
        dense=_measure(source.model, source, cache),
        control=_make_control(adapted, source.model, training, plan.seed + 1, cache, progress),
        measure_bytes=measure_bytes,
        cache=cache,
    )


def _make_control(
    start: Source,
    dense: PreTrainedModel,
    training: DistillationSettings,
    seed: int,
    cache: TrialCache,
    progress: Progress,
) -> Control:
    """Train a control on from a source's model, and measure it against the dense model."""
    what = "train the dense control"
    model = cache.train(start, training, seed, lambda: _train_alone(start, training, seed, what, progress))
    return Control(model=model, quality=_measure(model, replace(start, model=dense), cache))


def _measure(model: PreTrainedModel, dense: Source, cache: TrialCache) -> Quality:
    """Measure a model of the whole vocabulary against the dense model of a source."""
    return cache.measure(model, dense, lambda: measure_quality(model, dense.task, dense.test, dense=dense.model))


def _train_alone(
    source: Source, settings: DistillationSettings, seed: int, what: str, progress: Progress
) -> tuple[PreTrainedModel, bool]:
    """Return a copy of a model that trained on its text without a teacher, and whether the user ended that early."""
    copied = copy.deepcopy(source.model)
    trained = train_student(
        copied,
        None,
        source.text.train,
        settings,
        task=source.task,
        held_out=source.text.held_out,
        seed=seed,
        progress=lambda made: progress(what, made.step / made.steps),
    )
    return copied, trained.interrupted
