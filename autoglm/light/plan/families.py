"""Families of candidates: a scheme of quantization, and the gentlest structured cut with which it meets a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

from fedglm.autoglm.light.distillation.settings import DistillationSettings
from fedglm.autoglm.light.plan.recipe import Recipe
from fedglm.autoglm.light.pruning.settings import Budget, PruningSettings
from fedglm.autoglm.light.pruning.shape import ModelShape
from fedglm.autoglm.light.pruning.vocabulary import VocabularySettings
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.light.quantization.settings import QatSettings, QuantizationSettings

Name = Literal["int8", "int4", "int3", "int2", "ternary", "sparse"]

LEAST_SHARE: Final = 0.3
"""Least share of the layers' parameters that a cut leaves: below, training does not bring the model back."""
_TRIES: Final = 6
_MARGIN: Final = -0.005  # training changes the codes, and their length by less than that


@dataclass(frozen=True, kw_only=True)
class Family:
    """A scheme of quantization.

    Attributes:
        weights: Scheme of the matrices within the layers.
        embedding: Scheme of the embedding and of the output layer.
        rate: Weight of the codes' length under an entropy code in the training.
        trains: Whether it is trained quantized.
    """

    weights: Scheme
    embedding: Scheme
    rate: float = 0.0
    trains: bool = True


_INT8 = Scheme(codes="int8", block=128)
_INT4 = Scheme(codes="int4", block=128)  # a token is a fifth faster than with 32, and after training no worse
_INT4_ROWS = Scheme(codes="int4", block="row")
FAMILIES: Final[Mapping[Name, Family]] = MappingProxyType(
    {
        "int8": Family(weights=_INT8, embedding=_INT8, trains=False),
        "int4": Family(weights=_INT4, embedding=_INT4),
        "int3": Family(weights=Scheme(codes="int3", block="row"), embedding=_INT4_ROWS),
        "int2": Family(weights=Scheme(codes="int2", block="row"), embedding=_INT4_ROWS),
        "ternary": Family(weights=Scheme(codes="ternary", block="row"), embedding=_INT4_ROWS),
        "sparse": Family(weights=Scheme(codes="ternary", block="row", zeros=0.55), embedding=_INT4_ROWS),
    }
)
"""From the gentlest to the hardest."""


def make_recipe(
    name: Name,
    training: DistillationSettings,
    *,
    shape: ModelShape,
    parameters: int | None = None,
    vocabulary: VocabularySettings | None = None,
) -> Recipe:
    """Make the recipe of a family.

    Args:
        name: The family.
        training: Training of the quantized model.
        shape: Shape of the dense model, with the cut vocabulary where there is one.
        parameters: Number of parameters that a structured cut leaves; None cuts nothing.
        vocabulary: Cut of the vocabulary.
    """
    family = FAMILIES[name]
    cuts = parameters is not None and parameters < shape.parameters()
    qat = QatSettings(training=training, rate=family.rate) if family.trains else None
    share = "" if not cuts or parameters is None else f", {parameters / shape.parameters():.0%} of the parameters"
    return Recipe(
        name=name + share + (", public vocabulary" if vocabulary else ""),
        vocabulary=vocabulary,
        pruning=PruningSettings(budget=Budget(parameters=parameters)) if cuts else None,
        recovery=training if cuts and not family.trains else None,
        fold_norms=True,
        quantization=QuantizationSettings(weights=family.weights, embedding=family.embedding, qat=qat),
    )


def fit_parameters(shape: ModelShape, measure_excess: Callable[[int | None], float]) -> int | None:
    """Find the greatest number of parameters that meets the goals, by regula falsi: costs are nearly linear in it.

    Args:
        shape: Shape of the dense model.
        measure_excess: Returns how far the costs of a number of parameters are above the goals, as a share of them; at
            most 0 meets them. None cuts nothing.

    Returns:
        The number; None where nothing must be cut.

    Raises:
        OutOfReach: Even the hardest cut does not meet the goals.
    """
    if (high_excess := measure_excess(None)) <= 0:
        return None
    layers = _layer_parameters(shape)
    low, high = shape.parameters() - layers + int(LEAST_SHARE * layers), shape.parameters()
    if (low_excess := measure_excess(low)) > 0:
        raise OutOfReach(low_excess)
    for _ in range(_TRIES):
        share = (_MARGIN - low_excess) / max(high_excess - low_excess, 1e-9)
        middle = low + int(min(max(share, 0.0), 1.0) * (high - low))
        if middle <= low or low_excess > 2 * _MARGIN:
            break
        excess = measure_excess(middle)
        if excess <= 0:
            low, low_excess = middle, excess
        else:
            high, high_excess = middle, excess
    return low


class OutOfReach(Exception):
    """No cut of a family meets the goals; its argument is the excess of the hardest."""


def _layer_parameters(shape: ModelShape) -> int:
    return shape.parameters() - (shape.vocabulary + shape.outputs) * shape.hidden - shape.hidden
