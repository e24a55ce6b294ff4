"""Refitting the maps behind a cut by least squares, so that the kept units stand in for those that went.

The output of a linear map W on inputs x with mean outer product H is best matched from the inputs S alone by
W H_:S (H_SS)^-1 (the normal equations; ZipLM, arXiv:2302.04089, section 3, for structures). It needs no label, no
gradient and no training, and changes neither shape nor cost.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from fedglm.autoglm.light.pruning.calibration import LayerStatistics
from fedglm.autoglm.light.pruning.plan import PruningPlan
from fedglm.autoglm.light.pruning.surgery import apply_plan, read_shape

_DAMPING = 1e-3  # share of the mean energy: keeps the weights small where the kept inputs are nearly dependent


def apply_plan_and_refit(
    model: PreTrainedModel, plan: PruningPlan, statistics: Sequence[LayerStatistics]
) -> PreTrainedModel:
    """Cut a model as planned, and refit each down and attention output projection to the calibration text.

    Args:
        model: The whole model.
        plan: What to keep of it.
        statistics: What ``calibration.collect_statistics`` found for the whole model.

    Raises:
        PruningError: The plan is for another model, or the model is no GLM.
    """
    small, width = apply_plan(model, plan), read_shape(model).head_dim * read_shape(model).queries_per_group
    for kept, layer in zip(plan.layers, small.model.layers, strict=True):
        whole, found = model.model.layers[kept.layer], statistics[kept.layer]
        inputs = (torch.tensor(kept.groups)[:, None] * width + torch.arange(width)).flatten()
        for new, old, gram, chosen in (
            (layer.mlp.down_proj, whole.mlp.down_proj, found.channel_gram, torch.tensor(kept.channels)),
            (layer.self_attn.o_proj, whole.self_attn.o_proj, found.head_gram, inputs),
        ):
            with torch.no_grad():
                new.weight.copy_(refit(old.weight.detach(), gram, chosen))
    return small


def refit(weight: torch.Tensor, gram: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Return the weights on the kept inputs that match the output of all inputs best.

    Args:
        weight: Weights on all inputs, (rows, inputs).
        gram: Mean outer product of the inputs, (inputs, inputs), float64.
        kept: Numbers of the kept inputs, (k,).

    Returns:
        (rows, k), float64; ridge regression towards the old weights of the kept inputs.
    """
    old = weight.cpu().double()
    own = gram[kept][:, kept]
    damping = _DAMPING * own.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    ridge = damping * torch.eye(len(kept), dtype=torch.float64)
    fitted: torch.Tensor = torch.linalg.solve(own + ridge, (old @ gram[:, kept] + damping * old[:, kept]).T).T
    return fitted
