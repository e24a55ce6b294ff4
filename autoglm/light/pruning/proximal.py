"""Training towards sparsity: proximal steps of the group lasso and of L1, as a hook on training.

A penalty's subgradient makes weights small and never zero; the proximal step makes zeros. After each optimizer step

- **group lasso**: each unit's weight vector w shrinks to w * max(0, 1 - t / |w|) (Yuan and Lin 2006; Parikh and Boyd,
  "Proximal Algorithms", section 6.5.4), so that whole FFN channels or KV groups reach zero and can be cut for nothing;
- **L1**: each weight w shrinks to sign(w) * max(0, |w| - t) (section 6.5.2).

The vector of a channel is its column of the down projection, of a KV group its columns of the attention's output
projection: where they are zero the unit adds nothing. The threshold t is a share of the mean norm at the start (of the
mean magnitude for L1), so that it needs no learning rate and no scale.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from fedglm.autoglm.light.pruning.plan import LayerPlan, PruningPlan
from fedglm.autoglm.light.pruning.surgery import read_shape


class ProximalSettings(BaseModel):
    """How weights shrink.

    Attributes:
        penalty: ``group-lasso`` shrinks whole units, ``l1`` single weights.
        units: Units whose outgoing weights shrink.
        shrink: Threshold of a step, as a share of the mean norm (``l1``: mean magnitude) at the start.
        ramp_steps: Steps over which the threshold rises linearly from 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    penalty: Literal["group-lasso", "l1"] = "group-lasso"
    units: tuple[Literal["channels", "groups"], ...] = Field(default=("channels",), min_length=1)
    shrink: float = Field(default=0.005, gt=0, le=1)
    ramp_steps: int = Field(default=0, ge=0)


class ProximalHook:
    """Shrinks weights after each step; a hook of ``distillation.training.train_student``.

    Args:
        model: The model that will train, as it is at the start.
        settings: How weights shrink.

    Raises:
        PruningError: The model is no GLM.
    """

    def __init__(self, model: PreTrainedModel, settings: ProximalSettings) -> None:
        self._settings = settings
        self._width = _group_width(model)
        sizes = torch.cat([self._sizes(weight, width) for weight, width in self._weights(model)])
        self._threshold = settings.shrink * float(sizes.mean())

    def penalty(self, _student: torch.nn.Module) -> None:
        """Return None: what shrinks does so behind the step."""

    def before_update(self, _student: torch.nn.Module, _step: int) -> None:
        """Do nothing."""

    def after_update(self, student: torch.nn.Module, step: int) -> None:
        """Make the proximal step behind optimizer step `step`, counted from 1."""
        rise = min(1.0, step / self._settings.ramp_steps) if self._settings.ramp_steps else 1.0
        threshold = self._threshold * rise
        with torch.no_grad():
            for weight, width in self._weights(student):
                sizes = self._sizes(weight, width).clamp(min=torch.finfo(weight.dtype).tiny)
                factors = (1 - threshold / sizes).clamp(min=0)
                if self._settings.penalty == "group-lasso":
                    factors = factors.repeat_interleave(width)
                weight.mul_(factors)

    def _sizes(self, weight: torch.Tensor, width: int) -> torch.Tensor:
        """Return the norm of each unit's columns, (units,), or the magnitude of each weight for L1."""
        if self._settings.penalty == "l1":
            return weight.detach().abs()
        return weight.detach().view(len(weight), -1, width).square().sum((0, 2)).sqrt()

    def _weights(self, model: Any) -> Iterator[tuple[torch.Tensor, int]]:
        for layer in model.model.layers:
            if "channels" in self._settings.units:
                yield layer.mlp.down_proj.weight, 1
            if "groups" in self._settings.units:
                yield layer.self_attn.o_proj.weight, self._width


def plan_without_zeros(model: PreTrainedModel) -> PruningPlan:
    """Return the plan that keeps all units but those whose outgoing weights are zero; cutting the rest changes nothing.

    A layer keeps at least one channel and one group, for transformers has no layer without.

    Raises:
        PruningError: The model is no GLM.
    """
    width = _group_width(model)

    def kept(weight: torch.Tensor, unit: int) -> tuple[int, ...]:
        alive = weight.detach().view(len(weight), -1, unit).ne(0).any(2).any(0)
        return tuple(alive.nonzero().flatten().tolist()) or (0,)

    layers = enumerate(model.model.layers)
    return PruningPlan(
        layers=tuple(
            LayerPlan(
                layer=number,
                channels=kept(layer.mlp.down_proj.weight, 1),
                groups=kept(layer.self_attn.o_proj.weight, width),
            )
            for number, layer in layers
        )
    )


def _group_width(model: PreTrainedModel) -> int:
    """Return the number of columns of a KV group in the attention's output projection."""
    shape = read_shape(model)
    return shape.head_dim * shape.queries_per_group
