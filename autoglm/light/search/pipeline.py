"""The passes of a recipe, run: from a model to a light one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.pruning.norms import fold_norms
from fedglm.autoglm.light.pruning.prune import prune
from fedglm.autoglm.light.pruning.vocabulary import CutVocabulary, cut_vocabulary
from fedglm.autoglm.light.public_text import PublicText
from fedglm.autoglm.light.quantization.quantizer import QuantizedModel, Quantizer
from fedglm.autoglm.light.quantization.settings import QuantizationSettings
from fedglm.autoglm.light.search.tokens import decode, map_tokens
from fedglm.autoglm.tasks.task import Task
from fedglm.autoglm.tasks.text import TextTask

Progress = Callable[[str, float], None]
"""Called with the name of a pass and the share of it that is done."""

_NORMS = "*norm.weight"
_FEW = 16  # sequences that calibrate where only sizes matter


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """What a recipe starts from.

    Attributes:
        model: The dense model, in evaluation mode; never changed.
        task: Its task.
        text: Public or model-made text that calibrates, trains and chooses.
        test: Sequences that nothing is fitted to or chosen by, on which figures are measured.
    """

    model: PreTrainedModel
    task: Task
    text: PublicText
    test: Examples


@dataclass(frozen=True, eq=False, kw_only=True)
class LightModel:
    """A model that a recipe made.

    Attributes:
        recipe: The recipe.
        quantized: The quantized model.
        task: Its task, with the cut tokenizer where the vocabulary was cut.
        vocabulary: The cut of the vocabulary; None where there was none.
        interrupted: Whether the user ended one of its trainings early.
    """

    recipe: Recipe
    quantized: QuantizedModel
    task: Task
    vocabulary: CutVocabulary | None
    interrupted: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class CutModel:
    """A model between its cut and its quantization.

    Attributes:
        model: The cut model, in float32, recovered where the recipe recovers.
        teacher: The whole model, with the cut vocabulary where there is one.
        task: Its task.
        vocabulary: The cut of the vocabulary; None for none.
        fit: The sequences that train, in its tokens.
        held_out: The sequences that choose, in its tokens.
        interrupted: Whether the user ended one of its trainings early.
    """

    model: PreTrainedModel
    teacher: PreTrainedModel
    task: Task
    vocabulary: CutVocabulary | None
    fit: Examples
    held_out: Examples
    interrupted: bool = False


def run_recipe(
    source: Source, recipe: Recipe, *, seed: int, train: bool = True, progress: Progress | None = None
) -> LightModel:
    """Run the passes of a recipe; the source is left as it was.

    Args:
        source: The dense model and its text.
        recipe: The passes.
        seed: Seed of the trainings.
        train: Whether passes that train do; without, the result has the final sizes and an untrained loss.
        progress: Called as the work goes on.

    Raises:
        PruningError: The model cannot be cut so.
        TrainingError: A loss or a weight is not finite.
    """
    report = progress or (lambda *_: None)
    cut = cut_model(source, recipe, seed=seed, train=train, progress=report)
    model = fold_norms(cut.model)[0] if recipe.fold_norms else cut.model
    settings = _freeze_norms(recipe.quantization) if recipe.fold_norms else recipe.quantization
    if not train:
        settings = _simplify(settings)
    quantized = Quantizer(settings).quantize(
        model, cut.task, cut.fit, cut.held_out, teacher=cut.teacher, seed=seed, progress=report
    )
    interrupted = cut.interrupted or quantized.report.interrupted
    return LightModel(
        recipe=recipe, quantized=quantized, task=cut.task, vocabulary=cut.vocabulary, interrupted=interrupted
    )


def cut_model(source: Source, recipe: Recipe, *, seed: int, train: bool, progress: Progress) -> CutModel:
    """Run the passes of a recipe up to its quantization; as `run_recipe`."""
    vocabulary = cut_source(source, recipe)
    whole, task = (source.model, source.task) if vocabulary is None else (vocabulary.model, vocabulary.task)
    fit, held_out = (map_tokens(part, source.task, vocabulary) for part in (source.text.train, source.text.held_out))

    interrupted = False

    def recover(model: PreTrainedModel, number: int = 0) -> None:
        nonlocal interrupted
        if recipe.recovery is not None and train:
            trained = train_student(
                model,
                copy.deepcopy(whole),
                fit,
                recipe.recovery,
                task=task,
                held_out=held_out,
                seed=seed + number,
                progress=lambda made: progress("recover", made.step / made.steps),
            )
            interrupted = interrupted or trained.interrupted

    if recipe.pruning is None:
        small = copy.deepcopy(whole)
        recover(small)
    else:
        progress("prune", 0.0)
        settings = recipe.pruning
        if not train:
            settings = settings.model_copy(update={"steps": 1, "calibration": _FEW})
        small = prune(whole, task, fit, settings, seed=seed, train=recover if train else None).model
    return CutModel(
        model=small,
        teacher=whole,
        task=task,
        vocabulary=vocabulary,
        fit=fit,
        held_out=held_out,
        interrupted=interrupted,
    )


def cut_source(source: Source, recipe: Recipe) -> CutVocabulary | None:
    """Cut the vocabulary of a source as a recipe says; None where it says nothing, or there is none."""
    if recipe.vocabulary is None or not isinstance(source.task, TextTask):
        return None
    return cut_vocabulary(source.model, source.task, decode(source.task, source.text.train), recipe.vocabulary)


def _freeze_norms(settings: QuantizationSettings) -> QuantizationSettings:
    """Return the settings with folded norms frozen at 1, so that they cost nothing in the release."""
    if settings.qat is None:
        return settings
    frozen = (*settings.qat.frozen, _NORMS)
    return settings.model_copy(update={"qat": settings.qat.model_copy(update={"frozen": frozen})})


def _simplify(settings: QuantizationSettings) -> QuantizationSettings:
    """Return settings that give codes of about the same length in a fraction of the time."""
    few = settings.verification.model_copy(update={"sequences": 1, "repair": "none"})
    changes = {"qat": None, "method": "mse", "calibration_sequences": _FEW, "verification": few}
    return settings.model_copy(update=changes)
