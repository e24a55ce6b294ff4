"""Dynamic masks with gradient reflow: what is masked gets its gradient all the same, and may come back.

A mask multiplies the weights of each down projection: whole columns, which are FFN channels, or single weights. The
gradient passes it as if it were not there (straight through), so that what is masked has a dense gradient. Every
`interval` steps the mask changes: the weakest of the active go and as many of the masked grow, those with the largest
gradient (RigL: Evci et al., arXiv:1911.11134, section 3). What is masked keeps training in the shadow, as in dynamic
pruning with feedback (Lin et al., arXiv:2006.07253, section 3), or starts from zero when it grows, as in RigL.

    hook = attach_masks(model, settings)
    train_student(model, ..., hooks=(hook,))
    small = apply_plan(model, remove_masks(model))
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.plan import LayerPlan, PruningPlan
from fedglm.autoglm.light.pruning.surgery import read_shape


class MaskSettings(BaseModel):
    """How masks begin, and how they change.

    Attributes:
        unit: ``channel`` masks columns of the down projection, ``weight`` single weights of it.
        density: Share that stays active at the end; at least one unit of each layer does.
        start_density: Share that is active at the start; it falls along a cubic until `last_step`.
        interval: Number of steps between two changes.
        exchanged: Share of the active that is exchanged at the first change; it falls to 0 by half a cosine
            (RigL, section 3, "update schedule").
        last_step: Step after which the mask stays, so that the weights can settle.
        masked: ``shadow`` lets masked weights train with the gradient they would have, ``zero`` sets them to zero.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    unit: Literal["channel", "weight"] = "channel"
    density: float = Field(gt=0, le=1)
    start_density: float = Field(default=1.0, gt=0, le=1)
    interval: int = Field(default=20, ge=1)
    exchanged: float = Field(default=0.3, ge=0, le=1)
    last_step: int = Field(ge=0)
    masked: Literal["shadow", "zero"] = "shadow"

    @model_validator(mode="after")
    def _check_densities(self) -> Self:
        if self.start_density < self.density:
            raise ValueError("start_density is below density: what is masked is exchanged, the active share only falls")
        return self


class _Reflow(torch.autograd.Function):
    """Multiply by a mask forward; pass the gradient whole backward."""

    @staticmethod
    def forward(_context: Any, weight: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return weight * mask

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0], None


class Mask(nn.Module):
    """A mask as a parametrization of a weight.

    Attributes:
        mask: 1 for what is active, else 0: (1, columns) for channels, the weight's shape for single weights; a buffer.
    """

    mask: torch.Tensor

    def __init__(self, shape: tuple[int, int], *, like: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(shape, dtype=like.dtype, device=like.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the masked weight."""
        masked: torch.Tensor = _Reflow.apply(weight, self.mask)  # type: ignore[no-untyped-call]  # torch has no types here
        return masked

    def sizes(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the norm of each unit of a tensor of the weight's shape, (units,)."""
        if self.mask.shape == weight.shape:
            return weight.detach().abs().flatten()
        return weight.detach().square().sum(0).sqrt()


class MaskHook:
    """Changes the masks of a model that trains; a hook of ``distillation.training.train_student``."""

    def __init__(self, settings: MaskSettings) -> None:
        self._settings = settings

    def penalty(self, _student: torch.nn.Module) -> None:
        """Return None: masks need no penalty."""

    def before_update(self, student: torch.nn.Module, step: int) -> None:
        """Change the masks where it is time, by the dense gradients of optimizer step `step`, counted from 1."""
        settings = self._settings
        if step <= settings.last_step and step % settings.interval == 0:
            for mask, weight in _masks(student):
                if weight.grad is None:
                    raise PruningError("masked weights have no gradient: have the down projections train")
                self.change(mask, weight, weight.grad, step)

    def after_update(self, student: torch.nn.Module, _step: int) -> None:
        """Set masked weights to zero, where they do not train in the shadow."""
        if self._settings.masked == "zero":
            with torch.no_grad():
                for mask, weight in _masks(student):
                    weight.mul_(mask.mask)

    def active(self, units: int, step: int) -> int:
        """Return how many of some units are active behind a step: along a cubic from the start to the end."""
        settings = self._settings
        left = max(0.0, 1 - step / settings.last_step) if settings.last_step else 0.0
        share = settings.density + (settings.start_density - settings.density) * left**3
        return max(1, round(share * units))

    def change(self, mask: Mask, weight: torch.Tensor, gradient: torch.Tensor, step: int) -> None:
        """Change a mask: drop the smallest active units, grow the masked ones with the largest gradients.

        Args:
            mask: The mask.
            weight: The weight under it, (rows, columns).
            gradient: Its dense gradient, same shape.
            step: The step, which sets how many are active and how many are exchanged.
        """
        on = mask.mask.flatten().bool()
        target = min(self.active(len(on), step), int(on.sum()))
        share = self._settings.exchanged / 2 * (1 + math.cos(math.pi * step / max(1, self._settings.last_step)))
        grown = min(round(share * target), int((~on).sum()))
        sizes, slopes = mask.sizes(weight), mask.sizes(gradient)
        kept = _largest(torch.where(on, sizes, -torch.inf), target - grown)
        # Only what was masked before can grow: dropping and growing the same unit would exchange nothing.
        new = _largest(torch.where(on, -torch.inf, slopes), grown)
        with torch.no_grad():
            mask.mask.zero_()
            mask.mask.flatten()[torch.cat((kept, new))] = 1.0


def attach_masks(model: PreTrainedModel, settings: MaskSettings) -> MaskHook:
    """Put masks on the down projections of a model, in place, and return the hook that changes them.

    At the start the largest units by norm are active, `start_density` of them.

    Raises:
        PruningError: The model is no GLM, or has masks.
    """
    read_shape(model)
    hook = MaskHook(settings)
    for layer in model.model.layers:
        linear = layer.mlp.down_proj
        if parametrize.is_parametrized(linear, "weight"):
            raise PruningError("the down projections have a parametrization: detach it before masks are attached")
        weight = linear.weight
        mask = Mask((1, linear.in_features) if settings.unit == "channel" else tuple(weight.shape), like=weight)
        chosen = _largest(mask.sizes(weight), hook.active(mask.mask.numel(), 0))
        mask.mask.zero_()
        mask.mask.flatten()[chosen] = 1.0
        parametrize.register_parametrization(linear, "weight", mask)
    return hook


def remove_masks(model: PreTrainedModel) -> PruningPlan:
    """Take the masks off, in place, and return the plan that keeps every channel with an active weight.

    What was masked is zero from then on, so that cutting as planned changes no output. A layer keeps one channel.

    Raises:
        PruningError: The model is no GLM, or has no masks.
    """
    shape = read_shape(model)
    layers = []
    for number, (own, layer) in enumerate(zip(shape.layers, model.model.layers, strict=True)):
        linear = layer.mlp.down_proj
        if not parametrize.is_parametrized(linear, "weight"):
            raise PruningError("the model has no masks: attach them before training")
        alive = linear.parametrizations["weight"][0].mask.bool().any(0).expand(own.intermediate_size)
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
        channels = tuple(alive.nonzero().flatten().tolist()) or (0,)
        layers.append(LayerPlan(layer=number, channels=channels, groups=tuple(range(own.num_key_value_heads))))
    return PruningPlan(layers=tuple(layers))


def _masks(model: Any) -> list[tuple[Mask, nn.Parameter]]:
    """Return each mask and the weight under it."""
    pairs = []
    for layer in model.model.layers:
        of_weight = layer.mlp.down_proj.parametrizations["weight"]
        pairs.append((of_weight[0], of_weight.original))
    return pairs


def _largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """Return the indices of the largest values, the first of equals, (count,), int64."""
    return torch.argsort(values, descending=True, stable=True)[:count]
