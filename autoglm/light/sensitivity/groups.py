"""Groups of a GLM's parameters that are removed or quantized together: layers, feed-forward parts, KV groups, channels.

A group is removed by setting the columns of the output projections that read it to zero, which is exactly the model
without it: the residual stream passes by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import GlmConfig, PreTrainedModel

from fedglm.autoglm.errors import ModelError

Kind = Literal["embedding", "layer", "ffn", "kv-group", "channel"]
Indices = dict[str, torch.Tensor]
"""Row or column numbers, int64, by the parameter's name."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """Parameters that belong together.

    Attributes:
        kind: The embedding, a whole layer, its feed-forward part, the query heads of one key-value head with it, or one
            feed-forward channel.
        layer: Number of the layer, from 0; None for the embedding.
        number: Number within the layer, from 0.
        rows: Rows of the matrices (and entries of the biases) that compute the group.
        columns: Columns of the output projections that read it; empty for the embedding, which cannot be removed.
    """

    kind: Kind
    layer: int | None
    number: int
    rows: Indices
    columns: Indices

    @property
    def name(self) -> str:
        """Short name, such as ``3 kv-group 1``."""
        if self.layer is None:
            return self.kind
        return f"{self.layer} {self.kind}" + (f" {self.number}" if self.kind in ("kv-group", "channel") else "")


def list_groups(model: PreTrainedModel, *, channels: int, seed: int) -> list[Group]:
    """List the groups of a GLM, in the model's order.

    Args:
        model: A ``GlmForCausalLM`` or ``GlmForSequenceClassification``.
        channels: Number of single channels of each layer, drawn by the seed; the layer's own at most.
        seed: Seed of that draw.

    Raises:
        ModelError: The model is no GLM.
    """
    if not isinstance(model.config, GlmConfig):
        raise ModelError(f"sensitivity is measured on a GLM, not on a {type(model).__name__}")
    prefix = model.base_model_prefix
    embedding = f"{prefix}.embed_tokens.weight"
    groups = [
        Group(
            kind="embedding",
            layer=None,
            number=0,
            rows={embedding: torch.arange(len(model.get_parameter(embedding)))},
            columns={},
        )
    ]
    generator = torch.Generator().manual_seed(seed)
    for number, layer in enumerate(model.base_model.layers):
        at = f"{prefix}.layers.{number}."
        kv_groups = list(_kv_groups(layer.self_attn, at, number))
        width = layer.mlp.down_proj.in_features
        ffn = _channels(at, number, width, torch.arange(width), "ffn", 0)
        whole = Group(
            kind="layer",
            layer=number,
            number=0,
            rows=_join([*(group.rows for group in kv_groups), ffn.rows]),
            columns=_join([*(group.columns for group in kv_groups), ffn.columns]),
        )
        drawn = torch.randperm(width, generator=generator)[:channels].sort().values
        single = [_channels(at, number, width, channel[None], "channel", int(channel)) for channel in drawn]
        groups += [whole, ffn, *kv_groups, *single]
    return groups


def _kv_groups(attention: Any, at: str, layer: int) -> Iterator[Group]:
    width = attention.head_dim
    count = attention.k_proj.out_features // width
    queries = attention.q_proj.out_features // count
    for number in range(count):
        query = torch.arange(number * queries, (number + 1) * queries)
        key = torch.arange(number * width, (number + 1) * width)
        rows = {"q_proj.weight": query, "k_proj.weight": key, "v_proj.weight": key}
        if attention.q_proj.bias is not None:
            rows |= {"q_proj.bias": query, "k_proj.bias": key, "v_proj.bias": key}
        yield Group(
            kind="kv-group",
            layer=layer,
            number=number,
            rows={f"{at}self_attn.{name}": chosen for name, chosen in rows.items()},
            columns={f"{at}self_attn.o_proj.weight": query},
        )


def _channels(at: str, layer: int, width: int, chosen: torch.Tensor, kind: Kind, number: int) -> Group:
    return Group(
        kind=kind,
        layer=layer,
        number=number,
        rows={f"{at}mlp.gate_up_proj.weight": torch.cat((chosen, width + chosen))},  # the gate first, then up
        columns={f"{at}mlp.down_proj.weight": chosen},
    )


def _join(parts: list[Indices]) -> Indices:
    names = {name for part in parts for name in part}
    return {name: torch.cat([part[name] for part in parts if name in part]) for name in sorted(names)}


@contextmanager
def replaced(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> Iterator[None]:
    """Have a model compute with other values of some parameters within the block; then restore them to the bit."""
    kept = {name: model.get_parameter(name).detach().clone() for name in tensors}
    try:
        _copy(model, tensors)
        yield
    finally:
        _copy(model, kept)


def _copy(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in tensors.items():
            model.get_parameter(name).copy_(tensor)


def without(model: torch.nn.Module, columns: Indices) -> dict[str, torch.Tensor]:
    """Return the output projections with some columns set to zero, by name."""
    tensors = {}
    for name, chosen in columns.items():
        tensors[name] = model.get_parameter(name).detach().clone()
        tensors[name][:, chosen] = 0
    return tensors
