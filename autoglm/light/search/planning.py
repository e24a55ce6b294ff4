"""From goals to a plan: the candidates that meet them, before anything trains."""

from __future__ import annotations

from dataclasses import dataclass

from fedglm.autoglm.light.plan.families import FAMILIES, Name, OutOfReach, fit_parameters, make_recipe
from fedglm.autoglm.light.plan.lighten_plan import LightenPlan
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.shape import ModelShape
from fedglm.autoglm.light.pruning.surgery import read_shape
from fedglm.autoglm.light.pruning.vocabulary import VocabularySettings
from fedglm.autoglm.light.search.pipeline import Progress, Source, run_recipe
from fedglm.autoglm.light.search.search import Excess


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A family that no cut makes small or fast enough.

    Attributes:
        name: The family.
        excess: How far the costs of its hardest cut are above the goals, as a share of them.
    """

    name: Name
    excess: float


def choose_candidates(
    source: Source,
    draft: LightenPlan,
    measure_excess: Excess,
    *,
    vocabulary: VocabularySettings | None,
    progress: Progress,
) -> tuple[LightenPlan, tuple[LeftOut, ...]]:
    """Find for each family the gentlest cut that meets the goals.

    The families are asked from the gentlest. The first that meets the goals without a cut is the last that is asked.

    Args:
        source: The dense model and its text.
        draft: The plan but for its candidates.
        measure_excess: Measures a light model against the goals.
        vocabulary: Cut of the vocabulary that all candidates have; None for none.
        progress: Called as the work goes on.

    Returns:
        The plan, without candidates where no family meets the goals; and the families that were left out.
    """
    shape, recipes, left_out = _shape(source, vocabulary), list[Recipe](), list[LeftOut]()
    training = draft.training
    for number, name in enumerate(FAMILIES):
        progress(f"fit {name}", number / len(FAMILIES))

        def excess(parameters: int | None, name: Name = name) -> float:
            recipe = make_recipe(name, training, shape=shape, parameters=parameters, vocabulary=vocabulary)
            try:
                return measure_excess(run_recipe(source, recipe, seed=0, train=False))
            except PruningError:  # no cut reaches so few parameters
                return float("inf")

        try:
            parameters = fit_parameters(shape, excess)
        except OutOfReach as exc:
            left_out.append(LeftOut(name=name, excess=exc.args[0]))
            continue
        recipes.append(make_recipe(name, training, shape=shape, parameters=parameters, vocabulary=vocabulary))
        if parameters is None:
            break
    return draft.model_copy(update={"candidates": tuple(recipes)}), tuple(left_out)


def _shape(source: Source, vocabulary: VocabularySettings | None) -> ModelShape:
    shape = read_shape(source.model)
    if vocabulary is None:
        return shape
    recipe = Recipe(name="vocabulary", vocabulary=vocabulary)
    light = run_recipe(source, recipe, seed=0, train=False)
    return read_shape(light.quantized.reference)
