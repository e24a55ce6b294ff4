"""What a cut keeps: layers, FFN channels and KV groups, by their numbers in the model that is cut."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.shape import LayerShape, ModelShape


def _check_increasing(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if not numbers or numbers[0] < 0 or any(left >= right for left, right in pairwise(numbers)):
        raise ValueError("numbers of kept units must be at least one, increasing and not negative")
    return numbers


Kept = Annotated[tuple[int, ...], AfterValidator(_check_increasing)]
"""Numbers of kept units, increasing."""


class LayerPlan(BaseModel):
    """What a cut keeps of a layer.

    Attributes:
        layer: Number of the layer.
        channels: Kept FFN channels.
        groups: Kept KV groups.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layer: int = Field(ge=0)
    channels: Kept
    groups: Kept


class PruningPlan(BaseModel):
    """What a cut keeps of a model.

    Attributes:
        layers: The kept layers, in their order.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[LayerPlan, ...] = Field(min_length=1)

    @classmethod
    def keep_all(cls, shape: ModelShape) -> Self:
        """Return the plan that cuts nothing."""
        return cls(
            layers=tuple(
                LayerPlan(
                    layer=number,
                    channels=tuple(range(layer.intermediate_size)),
                    groups=tuple(range(layer.num_key_value_heads)),
                )
                for number, layer in enumerate(shape.layers)
            )
        )

    def apply_to_shape(self, shape: ModelShape) -> ModelShape:
        """Return the shape that the cut leaves.

        Raises:
            PruningError: The plan keeps what the shape does not have.
        """
        _check_increasing(tuple(layer.layer for layer in self.layers))
        for kept in self.layers:
            if kept.layer >= len(shape.layers):
                raise PruningError(f"the plan keeps layer {kept.layer} of a model of {len(shape.layers)} layers")
            whole = shape.layers[kept.layer]
            if kept.channels[-1] >= whole.intermediate_size or kept.groups[-1] >= whole.num_key_value_heads:
                raise PruningError(
                    f"the plan is for another model: layer {kept.layer} has {whole.intermediate_size} FFN channels "
                    f"and {whole.num_key_value_heads} KV groups"
                )
        return shape.with_layers(
            tuple(
                LayerShape(
                    intermediate_size=len(kept.channels),
                    num_key_value_heads=len(kept.groups),
                    num_attention_heads=len(kept.groups) * shape.queries_per_group,
                )
                for kept in self.layers
            )
        )

    def then(self, later: PruningPlan) -> Self:
        """Return the plan that has the effect of this one and then `later`, in this one's numbers."""
        layers = []
        for kept in later.layers:
            first = self.layers[kept.layer]
            layers.append(
                LayerPlan(
                    layer=first.layer,
                    channels=tuple(first.channels[number] for number in kept.channels),
                    groups=tuple(first.groups[number] for number in kept.groups),
                )
            )
        return self.model_copy(update={"layers": tuple(layers)})
