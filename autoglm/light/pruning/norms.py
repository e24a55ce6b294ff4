"""Folding the weights of RMSNorm into the linear layers behind, exactly.

A norm's output is g * x / rms(x), and a linear layer takes W (g * x / rms(x)) = (W diag(g)) (x / rms(x)): the weights g
go into the columns of W, and the norm is left without. A GLM has two norms a layer, before the attention (into query,
key and value) and before the FFN (into gate and up), none behind them, and a last one. That one goes into the output
layer, unless this is the embedding, whose rows are read elsewhere too; then it stays.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from transformers import PreTrainedModel

from fedglm.autoglm.light.pruning.surgery import read_shape


def fold_norms(model: PreTrainedModel) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """Return a copy whose norms have weights of 1 where they can be folded, and the names of those left as they are.

    Outputs change by rounding alone: the products are rounded once, from float64.

    Raises:
        PruningError: The model is no GLM.
    """
    read_shape(model)
    folded = copy.deepcopy(model)
    for layer in folded.model.layers:
        attention = layer.self_attn
        _fold(layer.input_layernorm, attention.q_proj, attention.k_proj, attention.v_proj)
        _fold(layer.post_attention_layernorm, layer.mlp.gate_up_proj)
    head = folded.score if hasattr(folded, "score") else folded.lm_head
    if head.weight is folded.model.embed_tokens.weight:
        return folded, ("model.norm",)
    _fold(folded.model.norm, head)
    return folded, ()


def _fold(norm: nn.Module, *linears: nn.Linear) -> None:
    weight = norm.get_parameter("weight")
    with torch.no_grad():
        for linear in linears:
            linear.weight.copy_(linear.weight.double() * weight.double())
        weight.fill_(1.0)
