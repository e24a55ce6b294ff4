"""Cutting a GLM as planned, and padding layers of different widths to a model that transformers loads.

What `apply_plan` returns is a model of the same class whose linear layers are smaller. Where all layers have the same
widths it is an ordinary one. Where they differ it computes as it is, each layer in its own widths, but transformers
can load one width only: `pad_layers` fills up with zeros to the greatest, which changes no output, and the
configuration lists the true widths (`shape.LAYERS_KEY`), by which `trim_layers` undoes it. Zeros stay zeros in
training: a channel or a group whose in- and outgoing weights are all zero has a gradient of zero.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import GlmForCausalLM, GlmForSequenceClassification, PreTrainedModel

from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.plan import LayerPlan, PruningPlan
from fedglm.autoglm.light.pruning.shape import LAYERS_KEY, LayerShape, ModelShape


def read_shape(model: PreTrainedModel) -> ModelShape:
    """Read the shape of a model: that of its tensors, also where they are not padded.

    Raises:
        PruningError: The model is no GLM for language modelling or classification.
    """
    if not isinstance(model, GlmForCausalLM | GlmForSequenceClassification):
        raise PruningError(
            f"only a GLM for language modelling or classification can be cut, not {type(model).__name__}"
        )
    config = model.config.to_dict() | {LAYERS_KEY: None}
    shape = ModelShape.from_config(config, classifier=isinstance(model, GlmForSequenceClassification))
    return shape.with_layers(tuple(_layer_shape(layer, shape) for layer in model.model.layers))


def apply_plan(model: PreTrainedModel, plan: PruningPlan) -> PreTrainedModel:
    """Return a copy of a model that has only what the plan keeps; its outputs are as if the rest were zero.

    A KV group goes with its query heads, a layer as a whole (the residual stream passes it by).

    Raises:
        PruningError: The plan is for another model, or the model is no GLM.
    """
    shape = plan.apply_to_shape(read_shape(model))
    small = copy.deepcopy(model)
    body = small.model
    body.layers = nn.ModuleList(body.layers[kept.layer] for kept in plan.layers)
    for number, (layer, kept) in enumerate(zip(body.layers, plan.layers, strict=True)):
        layer.self_attn.layer_idx = number
        _cut_layer(layer, kept, shape)
    _set_shape(small, shape)
    return small


def pad_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy whose layers are all as wide as the widest, filled up with zeros; its outputs are the same.

    The copy is what ``save_pretrained`` may write. Its configuration lists the true widths where they differ.

    Raises:
        PruningError: The model is no GLM.
    """
    shape, padded = read_shape(model), copy.deepcopy(model)
    widest = shape.widest
    for layer in padded.model.layers:
        own = _layer_shape(layer, shape)
        query, group = widest.num_attention_heads * shape.head_dim, widest.num_key_value_heads * shape.head_dim
        attention, mlp = layer.self_attn, layer.mlp
        attention.q_proj = _pad_rows(attention.q_proj, query)
        attention.k_proj, attention.v_proj = _pad_rows(attention.k_proj, group), _pad_rows(attention.v_proj, group)
        attention.o_proj = _pad_columns(attention.o_proj, query)
        gate, up = mlp.gate_up_proj.weight.detach().split(own.intermediate_size)
        empty = gate.new_zeros(widest.intermediate_size - own.intermediate_size, shape.hidden)
        mlp.gate_up_proj = _make_linear(mlp.gate_up_proj, torch.cat((gate, empty, up, empty)), None)
        mlp.down_proj = _pad_columns(mlp.down_proj, widest.intermediate_size)
    _set_shape(padded, shape)
    return padded


def trim_layers(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy without the zeros that `pad_layers` added, by the widths that the configuration lists.

    A model whose configuration lists none is copied as it is.

    Raises:
        PruningError: What would be cut off is not zero, or the model is no GLM.
    """
    whole = read_shape(model)
    listed = ModelShape.from_config(model.config.to_dict(), classifier=isinstance(model, GlmForSequenceClassification))
    plan = PruningPlan(
        layers=tuple(
            LayerPlan(
                layer=number,
                channels=tuple(range(layer.intermediate_size)),
                groups=tuple(range(layer.num_key_value_heads)),
            )
            for number, layer in enumerate(listed.layers)
        )
    )
    for layer, own in zip(model.model.layers, plan.apply_to_shape(whole).layers, strict=True):
        heads = own.num_attention_heads * whole.head_dim
        rest = layer.self_attn.o_proj.weight[:, heads:], layer.mlp.down_proj.weight[:, own.intermediate_size :]
        if any(part.any() for part in rest):
            raise PruningError(f"{LAYERS_KEY} lists widths that would cut off weights: it is not of this model")
    return apply_plan(model, plan)


def _layer_shape(layer: Any, shape: ModelShape) -> LayerShape:
    """Return the widths of a layer's tensors."""
    return LayerShape(
        intermediate_size=layer.mlp.down_proj.in_features,
        num_key_value_heads=layer.self_attn.k_proj.out_features // shape.head_dim,
        num_attention_heads=layer.self_attn.q_proj.out_features // shape.head_dim,
    )


def _set_shape(model: PreTrainedModel, shape: ModelShape) -> None:
    """Write a shape into the model's configuration, which all its modules share."""
    fields = shape.config_fields()
    layers = fields.pop(LAYERS_KEY)
    for name, value in fields.items():
        setattr(model.config, name, value)
    if layers is not None:
        setattr(model.config, LAYERS_KEY, layers)
    elif hasattr(model.config, LAYERS_KEY):
        delattr(model.config, LAYERS_KEY)


def _cut_layer(layer: Any, kept: LayerPlan, shape: ModelShape) -> None:
    attention, mlp = layer.self_attn, layer.mlp
    channels = torch.tensor(kept.channels)
    groups = _spread(torch.tensor(kept.groups), shape.head_dim)
    queries = _spread(torch.tensor(kept.groups), shape.head_dim * shape.queries_per_group)
    both = torch.cat((channels, channels + mlp.down_proj.in_features))  # the gates' rows, then the ups'
    attention.q_proj = _take_rows(attention.q_proj, queries)
    attention.k_proj, attention.v_proj = _take_rows(attention.k_proj, groups), _take_rows(attention.v_proj, groups)
    attention.o_proj = _make_linear(attention.o_proj, attention.o_proj.weight.detach()[:, queries], None)
    mlp.gate_up_proj = _take_rows(mlp.gate_up_proj, both)
    mlp.down_proj = _make_linear(mlp.down_proj, mlp.down_proj.weight.detach()[:, channels], None)


def _spread(units: torch.Tensor, width: int) -> torch.Tensor:
    """Return the rows of units that are `width` rows each, (units * width,), int64."""
    return (units[:, None] * width + torch.arange(width)).flatten()


def _take_rows(linear: nn.Linear, rows: torch.Tensor) -> nn.Linear:
    bias = None if linear.bias is None else linear.bias.detach()[rows]
    return _make_linear(linear, linear.weight.detach()[rows], bias)


def _pad_rows(linear: nn.Linear, rows: int) -> nn.Linear:
    missing = rows - linear.out_features
    weight = nn.functional.pad(linear.weight.detach(), (0, 0, 0, missing))
    return _make_linear(
        linear, weight, None if linear.bias is None else nn.functional.pad(linear.bias.detach(), (0, missing))
    )


def _pad_columns(linear: nn.Linear, columns: int) -> nn.Linear:
    weight = nn.functional.pad(linear.weight.detach(), (0, columns - linear.in_features))
    return _make_linear(linear, weight, None)


def _make_linear(old: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Linear:
    """Make a linear layer of a weight, (rows, columns), and a bias; whether it trains is the old one's."""
    with torch.device("meta"):
        linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    train = old.weight.requires_grad
    linear.weight = nn.Parameter(weight.clone(), requires_grad=train)
    if bias is not None:
        linear.bias = nn.Parameter(bias.clone(), requires_grad=train)
    return linear.train(old.training)
