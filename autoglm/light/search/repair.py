"""Repair of the chosen model: layers whose outputs deviate get more bits, or more training, within the goals.

The layers are those whose outputs, on the reference's own inputs, have less cosine with the reference's than the
recipe's verification allows, after the training. Those that the goals have room for, asked from the worst, get the next
more bits, and the model trains anew; where there is room for none, they train on alone, and the control as much longer.
Deviation says where to look; whether a repair stays, the loss on the sequences that choose decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from fedglm.autoglm.light.plan.lighten_plan import train_more
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.quantization.report import LayerReport
from fedglm.autoglm.light.quantization.scheme import Scheme, step_up
from fedglm.autoglm.light.search.pipeline import Progress, run_recipe
from fedglm.autoglm.light.search.search import Excess
from fedglm.autoglm.light.search.trials import Bench, Trial

Way = Literal["bits", "training"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Repair:
    """What came of the verification of a chosen model.

    Attributes:
        min_cosine: Least cosine that its recipe allows.
        deviating: Names of the layers below it, the worst first.
        layers: Names of those that a repair was tried on.
        way: What they got; None where nothing was tried.
        before: The model without the repair.
        after: The model with it; None where none was made.
        kept: Whether that is the one to be released.
        outcome: What came of it, in words.
    """

    min_cosine: float
    deviating: tuple[str, ...]
    layers: tuple[str, ...] = ()
    way: Way | None = None
    before: Trial
    after: Trial | None = None
    kept: bool = False
    outcome: str

    @property
    def chosen(self) -> Trial:
        """The model to be released."""
        return self.after if self.after is not None and self.kept else self.before


def repair(
    bench: Bench, best: Trial, measure_excess: Excess, *, stopped: Callable[[], bool], progress: Progress
) -> Repair:
    """Verify the best candidate of a search, and repair what deviates where the plan asks for it.

    Args:
        bench: What candidates are made from, with the plan.
        best: The candidate.
        measure_excess: Measures what a light model costs, against the goals.
        stopped: Asked whether to leave the repair out.
        progress: Called as the work goes on.

    Raises:
        TrainingError: A loss or a weight is not finite.
    """
    deviating = best.light.quantized.report.failed
    found = Repair(
        min_cosine=best.recipe.quantization.verification.min_cosine,
        deviating=deviating,
        before=best,
        outcome="no layer deviates",
    )
    if not deviating:
        return found
    if not bench.plan.repair or stopped():
        return replace(found, outcome="the search was ended" if bench.plan.repair else "the plan asks for none")
    progress("find room for repairs", 0.0)
    recipe, layers = _give_bits(bench, best, deviating, measure_excess)
    way: Way = "bits"
    if not layers:
        if best.recipe.quantization.qat is None:
            return replace(found, outcome="the goals have no room for more bits, or none has more, and nothing trains")
        recipe, layers, way = _give_training(bench, best.recipe, deviating), deviating, "training"
    after = bench.make(recipe, in_full=True, progress=lambda what, share: progress(f"repair: {what}", share))
    fault = _find_fault(bench, best, after, measure_excess)
    return replace(
        found,
        layers=layers,
        way=way,
        after=_note(best, after, layers, way),
        kept=fault is None,
        outcome=fault or "the loss is lower",
    )


def _find_fault(bench: Bench, before: Trial, after: Trial, measure_excess: Excess) -> str | None:
    """Say why a repaired model is not to be released; None where it is."""
    if after.held_out_loss >= before.held_out_loss:
        return "the loss on the text that chooses is no lower"
    if after.loss_rise > bench.plan.goals.tolerance:
        return "it is beyond the tolerance"
    return "it is beyond the goals" if measure_excess(after.light) > 0 else None


def _give_bits(
    bench: Bench, best: Trial, deviating: Sequence[str], measure_excess: Excess
) -> tuple[Recipe, tuple[str, ...]]:
    """Give the next more bits to the layers that the goals have room for, the worst first.

    Costs are measured on models that did not train, relative to the one without a repair, which was measured trained.
    """
    settings, chosen = best.recipe.quantization, dict[str, Scheme]()
    wider = {name: more for name in deviating if (more := _step_up(settings.scheme_of(name))) is not None}

    def measure_untrained(schemes: dict[str, Scheme]) -> float:
        recipe = _override(best.recipe, schemes)
        return 1 + measure_excess(run_recipe(bench.source, recipe, seed=bench.plan.seed, train=False))

    share = (1 + measure_excess(best.light)) / measure_untrained({}) if wider else 1.0
    for name, scheme in wider.items():
        if share * measure_untrained(chosen | {name: scheme}) <= 1:
            chosen[name] = scheme
    return _override(best.recipe, chosen), tuple(chosen)


def _step_up(scheme: Scheme | None) -> Scheme | None:
    return None if scheme is None else step_up(scheme)


def _override(recipe: Recipe, schemes: dict[str, Scheme]) -> Recipe:
    settings = recipe.quantization
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}, {len(schemes)} layers with more bits",
            "quantization": settings.model_copy(update={"overrides": {**schemes, **settings.overrides}}),
        }
    )


def _give_training(bench: Bench, recipe: Recipe, layers: Sequence[str]) -> Recipe:
    """Let some layers alone train on, quantized, for a trial's share of the steps."""
    settings = recipe.quantization
    assert settings.qat is not None  # noqa: S101 - the caller asks
    steps = max(1, round(bench.plan.trial_share * bench.plan.training.steps))
    patterns = tuple(f"{name.removesuffix('.weight')}.*" for name in layers)  # scales too
    training = train_more(settings.qat.training, steps, trained=patterns)
    qat = settings.qat.model_copy(update={"training": training})
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}, {len(layers)} layers trained on",
            "quantization": settings.model_copy(update={"qat": qat}),
        }
    )


def _note(before: Trial, after: Trial, layers: Sequence[str], way: Way) -> Trial:
    """Write into the report of the repaired model what its layers got, and what that did to their outputs."""
    earlier = {layer.name: layer for layer in before.light.quantized.report.layers}

    def describe(layer: LayerReport) -> LayerReport:
        if layer.name not in layers:
            return layer
        was = earlier[layer.name]
        what = f"{was.scheme} -> {layer.scheme}" if way == "bits" else "trained on"
        gain = f"{what}: cosine {was.cosine:.4f} -> {layer.cosine:.4f}"
        return layer.model_copy(update={"repair": (*layer.repair, gain)})

    quantized = after.light.quantized
    report = quantized.report.model_copy(update={"layers": tuple(map(describe, quantized.report.layers))})
    return replace(after, light=replace(after.light, quantized=replace(quantized, report=report)))
