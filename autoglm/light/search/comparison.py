"""The table of a search: what each means alone gives, beside the chosen model, all from the same steps and text."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from transformers import PreTrainedModel

from fedglm.autoglm.light.distillation.student import make_student
from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.light.plan.families import FAMILIES, Name, make_recipe
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.pruning.surgery import read_shape
from fedglm.autoglm.light.quantization.quantizer import Quantizer
from fedglm.autoglm.light.quantization.settings import QuantizationSettings
from fedglm.autoglm.light.search.measures import Quality, measure_quality
from fedglm.autoglm.light.search.pipeline import LightModel, Progress, cut_model
from fedglm.autoglm.light.search.trial_cache import MeasuredModel
from fedglm.autoglm.light.search.trials import Bench, Trial
from fedglm.autoglm.models.presets import Preset

ALONE: tuple[Name, ...] = ("int8", "int4", "ternary")
"""Families that the table has without any cut."""

_STUDENT = QuantizationSettings(weights=FAMILIES["int8"].weights, embedding=FAMILIES["int8"].embedding)
_HEAD = 16  # columns of a small student's attention head


@dataclass(frozen=True, eq=False, kw_only=True)
class Row:
    """A model of the table.

    Attributes:
        name: Its name there.
        quality: Its figures on the sequences that measure.
        bytes: Bytes of its release, or of its float32 tensors.
        parameters: Number of its parameters.
        loss_rise: How much worse it is than the control (`measures.find_rise`).
        light: The model, for what is timed; None for the dense ones and the pruned one.
        model: The dense model or control; None for others.
    """

    name: str
    quality: Quality
    bytes: int
    parameters: int
    loss_rise: float
    light: LightModel | None = None
    model: PreTrainedModel | None = None


def compare(
    bench: Bench,
    trials: Sequence[Trial],
    chosen: Trial | None,
    *,
    stopped: Callable[[], bool],
    progress: Progress,
) -> tuple[tuple[Row, ...], tuple[Trial, ...]]:
    """Make the models of the table that the search has not made, and return its rows.

    Args:
        bench: What candidates are made from.
        trials: Candidates of the search.
        chosen: The one that is released; None where none is.
        stopped: Asked between models whether to leave the rest out.
        progress: Called as the work goes on.

    Returns:
        The rows, and the further trials, which belong on the frontier too.
    """
    reference = sum(parameter.numel() for parameter in bench.dense_model.parameters())
    dense = [
        ("dense", bench.dense_model, bench.dense),
        ("control, trained as long", bench.control.model, bench.control.quality),
    ]
    if chosen is not None and (own := bench.find_control(chosen.recipe, progress)) is not bench.control:
        dense.append((f"control, {chosen.recipe.steps:,} steps", own.model, own.quality))
    rows = [
        Row(
            name=name,
            quality=quality,
            bytes=4 * reference,
            parameters=reference,
            loss_rise=bench.find_rise(quality),
            model=model,
        )
        for name, model, quality in dense
    ]
    known = {trial.recipe.model_dump_json(): trial for trial in trials if trial.in_full}
    alone = list[Trial]()
    for name in ALONE:
        recipe = make_recipe(name, bench.plan.training, shape=read_shape(bench.source.model))
        if stopped():
            break
        if (trial := known.get(recipe.model_dump_json())) is None:
            trial = bench.make(recipe, in_full=True, progress=_prefix(progress, f"compare {name}"))
            alone.append(trial)
        rows.append(_row(name, trial))
    if chosen is not None:
        if chosen.recipe.pruning is not None and not stopped():
            rows.append(_make_pruned(bench, chosen.recipe, progress))
        if not stopped():
            rows.append(_make_student(bench, chosen, progress))
        rows.append(_row(f"chosen: {chosen.recipe.name}", chosen))
    return tuple(rows), tuple(alone)


def _make_pruned(bench: Bench, recipe: Recipe, progress: Progress) -> Row:
    """Make the chosen cut in float32, trained as long."""
    source, seed = bench.source, bench.plan.seed
    alone = Recipe(name="pruned", vocabulary=recipe.vocabulary, pruning=recipe.pruning, recovery=bench.plan.training)

    def make() -> tuple[dict[str, Any], bool]:
        cut = cut_model(source, alone, seed=seed, train=True, progress=_prefix(progress, "compare pruned"))
        quality = measure_quality(cut.model, source.task, source.test, dense=source.model, vocabulary=cut.vocabulary)
        size = sum(parameter.numel() for parameter in cut.model.parameters())
        return {"quality": asdict(quality), "parameters": size}, cut.interrupted

    facts = bench.cache.make_facts("pruned", source, make, recipe=alone.model_dump(mode="json"), seed=seed)
    quality, size = Quality(**facts["quality"]), facts["parameters"]
    return Row(
        name="pruned, float32",
        quality=quality,
        bytes=4 * size,
        parameters=size,
        loss_rise=bench.find_rise(quality),
    )


def _make_student(bench: Bench, chosen: Trial, progress: Progress) -> Row:
    """Make a dense student in INT8 of as many bytes as the chosen model, from random weights, trained as long."""
    source, training, seed = bench.source, bench.plan.training, bench.plan.seed
    shape = _shape_of_bytes(source.model, chosen.bytes)
    recipe = Recipe(name="student", quantization=_STUDENT)

    def make() -> MeasuredModel:
        student = make_student(source.model, shape, seed=seed)
        trained = train_student(
            student,
            copy.deepcopy(source.model),
            source.text.train,
            training,
            task=source.task,
            held_out=source.text.held_out,
            seed=seed,
            progress=lambda made: progress("compare an equal-byte dense student: train", made.step / made.steps),
        )
        quantized = Quantizer(_STUDENT).quantize(student, source.task, source.text.train, source.text.held_out)
        light = LightModel(
            recipe=recipe, quantized=quantized, task=source.task, vocabulary=None, interrupted=trained.interrupted
        )
        return bench.measure(light)

    decides = {"student": asdict(shape), "training": training.model_dump(mode="json")}
    made = bench.cache.make_light(source, recipe, seed, make, **decides)
    return Row(
        name="dense student, INT8",
        quality=made.quality,
        bytes=bench.measure_bytes(made.light),
        parameters=_count(made.light),
        loss_rise=bench.find_rise(made.quality),
        light=made.light,
    )


def _shape_of_bytes(model: PreTrainedModel, size: int) -> Preset:
    """Return the shape, with as many layers as the model, whose INT8 release is nearest to a number of bytes."""
    config = model.config
    labels = 0 if config.tie_word_embeddings else config.num_labels

    def shape(heads: int) -> Preset:
        width = heads * _HEAD
        return Preset(
            hidden=width,
            layers=config.num_hidden_layers,
            heads=heads,
            kv_heads=heads // 2 if heads % 2 == 0 else heads,
            intermediate=2 * width,
            max_length=config.max_position_embeddings,
        )

    most = max(1, config.hidden_size // _HEAD)
    counts = {heads: shape(heads).parameter_count(config.vocab_size, labels) for heads in range(1, most + 1)}
    return shape(min(counts, key=lambda heads: abs(counts[heads] - size)))


def _row(name: str, trial: Trial) -> Row:
    return Row(
        name=name,
        quality=trial.quality,
        bytes=trial.bytes,
        parameters=_count(trial.light),
        loss_rise=trial.loss_rise,
        light=trial.light,
    )


def _count(light: LightModel) -> int:
    return sum(parameter.numel() for parameter in light.quantized.reference.parameters())


def _prefix(progress: Progress, name: str) -> Progress:
    return lambda what, share: progress(f"{name}: {what}", share)
