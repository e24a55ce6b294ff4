"""Settings of structured pruning: the budget, what may be cut, and how often."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fedglm.autoglm.light.pruning.scores import Method
from fedglm.autoglm.light.pruning.shape import ModelShape, StorageBits

Unit = Literal["channels", "groups", "layers"]
"""What may be cut: FFN channels, KV groups (with their query heads), whole layers."""


class Budget(BaseModel):
    """What the model may cost after the cut; every limit that is set holds.

    Attributes:
        parameters: Greatest number of parameters, a tied output layer counted once.
        bytes: Greatest size of all tensors in bytes, at `bits` a number, without headers.
        bits: Bits that a stored number takes.
        latency: Greatest cost by the cost function that goes with it, in that function's unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    parameters: int | None = Field(default=None, ge=1)
    bytes: float | None = Field(default=None, gt=0)
    bits: StorageBits = StorageBits()
    latency: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _limit_something(self) -> Self:
        if self.parameters is None and self.bytes is None and self.latency is None:
            raise ValueError("a budget limits parameters, bytes or latency")
        return self

    def loosen(self, share: float, whole: ModelShape, latency: float | None) -> Budget:
        """Return the budget on the way from a whole model's costs (share 0) to this one (share 1)."""

        def between(start: float | None, end: float | None) -> float | None:
            return None if end is None or start is None else start + (end - start) * share

        parameters = between(whole.parameters(), self.parameters)
        changes = {
            "parameters": None if parameters is None else int(parameters),
            "bytes": between(whole.bytes(self.bits), self.bytes),
            "latency": between(latency, self.latency),
        }
        return self if share >= 1 else self.model_copy(update=changes)


class PruningSettings(BaseModel):
    """How a model is cut to a budget.

    Attributes:
        budget: What the model may cost afterwards.
        method: Score of the units (the table in ``scores``).
        units: What may be cut.
        per_layer: Whether layers may differ in width; otherwise all keep as many channels and groups.
        channel_multiple: Widths of the FFN are multiples of this, as fast kernels want them.
        min_channels: Least number of FFN channels of a layer.
        min_layers: Least number of layers.
        layer_weight: Factor on the score of a whole layer; above 1 spares layers, for what builds on a layer suffers
            with it and its score does not know.
        refit: Whether the maps behind the cut are refitted to the calibration text by least squares.
        steps: Number of cuts: 1 is one-shot; more come nearer cut by cut, with training after each.
        calibration: Greatest number of calibration sequences.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: Budget
    method: Method = "reconstruction"
    units: tuple[Unit, ...] = Field(default=("channels", "groups", "layers"), min_length=1)
    per_layer: bool = False
    channel_multiple: int = Field(default=1, ge=1, le=4096)
    min_channels: int = Field(default=1, ge=1)
    min_layers: int = Field(default=1, ge=1)
    layer_weight: float = Field(default=1.0, gt=0)
    refit: bool = True
    steps: int = Field(default=1, ge=1, le=1000)
    calibration: int = Field(default=256, ge=1)
