"""Redundant heads and channels: those that compute nearly what another of their layer computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Redundancy:
    """Similarity within a layer.

    Attributes:
        kind: Whether attention heads or feed-forward channels are compared.
        layer: Number of the layer, from 0.
        units: Number of heads or channels.
        redundant: Number of them that are as similar as `threshold` to one before them: all of these could go.
        most_similar: Greatest similarity of two.
        threshold: Similarity from which one counts as redundant.
    """

    kind: Literal["heads", "channels"]
    layer: int
    units: int
    redundant: int
    most_similar: float
    threshold: float


def measure_redundancy(
    model: PreTrainedModel, task: Task, examples: Examples, *, threshold: float, batch_size: int = 32
) -> list[Redundancy]:
    """Compare the heads and the channels of every layer by what they put out on tokens that are no padding.

    Channels are numbers: |cosine| over the tokens. Heads are vectors, each in a basis of its own: linear centered
    kernel alignment, 0 to 1, which no rotation changes (Kornblith et al., arXiv:1905.00414, section 3).
    """
    layers = list(model.base_model.layers)
    seen: dict[tuple[str, int], list[torch.Tensor]] = {}
    mask = torch.ones(0)
    handles = []
    for number, layer in enumerate(layers):
        for kind, part in (("heads", layer.self_attn.o_proj), ("channels", layer.mlp.down_proj)):

            def add(
                _module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], key: tuple[str, int] = (kind, number)
            ) -> None:
                seen.setdefault(key, []).append(inputs[0][mask].float().cpu())

            handles.append(part.register_forward_pre_hook(add))
    try:
        for part in torch.split(torch.arange(len(examples)), batch_size):
            batch = examples.batch(part)
            mask = batch["attention_mask"].bool()
            with torch.no_grad():
                task.sequence_losses(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for number, layer in enumerate(layers):
        outputs = torch.cat(seen["heads", number])
        heads = outputs.view(len(outputs), -1, layer.self_attn.head_dim)
        found.append(_count("heads", number, compare_heads(heads), threshold))
        found.append(_count("channels", number, compare_channels(torch.cat(seen["channels", number])), threshold))
    return found


def compare_channels(outputs: torch.Tensor) -> torch.Tensor:
    """Return the |cosine| of every two columns of (tokens, channels), (channels, channels); 0 for a column of zeros."""
    outputs = outputs.double()
    scaled = outputs / outputs.square().sum(0).sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return (scaled.T @ scaled).abs()


def compare_heads(outputs: torch.Tensor) -> torch.Tensor:
    """Return the linear CKA of every two heads of (tokens, heads, width), (heads, heads); 0 for a constant head."""
    outputs = outputs.double()
    heads = [head - head.mean(0) for head in outputs.unbind(1)]
    cross: torch.Tensor = torch.stack([torch.stack([(a.T @ b).square().sum() for b in heads]) for a in heads])
    own = cross.diagonal().sqrt().clamp(min=torch.finfo(torch.float64).tiny)
    return cross / (own[:, None] * own)


def _count(kind: Literal["heads", "channels"], layer: int, similarity: torch.Tensor, threshold: float) -> Redundancy:
    before = similarity.tril(-1)  # each unit against those before it
    return Redundancy(
        kind=kind,
        layer=layer,
        units=len(similarity),
        redundant=int((before.amax(1) >= threshold).sum()),
        most_similar=float(before.max()),
        threshold=threshold,
    )
