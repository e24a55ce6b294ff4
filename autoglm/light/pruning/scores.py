"""How much a model needs its units: a score for each FFN channel, KV group and layer; the least are cut first.

- ``energy``: mean squared norm of what the unit adds to the residual stream, as a share of the stream's own. For a
  channel it is the squared norm of its down-projection column times its activation's energy: Wanda's product (Sun et
  al., arXiv:2306.11695, section 3), squared and summed over a unit.
- ``reconstruction``: the part of it that the others cannot make up for. Units are eliminated one by one while the rest
  is refitted by least squares: optimal brain surgeon (Hassibi and Stork 1993), for units as in ZipLM (Kurtic et al.,
  arXiv:2302.04089, section 3).
- ``taylor``: mean magnitude of the loss's change to first order, without the unit (Molchanov et al., arXiv:1611.06440,
  section 2.2).
- ``fisher``: half the mean square of that change (Theis et al., arXiv:1801.05787, section 2).
- ``l1``: mean magnitude of its weights (Li et al., arXiv:1608.08710, section 3.1), and ``random``: for comparison.

Within a method all scores have one unit, so that units of all kinds and layers can be compared. Scores of units that go
together are added, which is an estimate: they are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from fedglm.autoglm.light.pruning.calibration import GateDerivatives, LayerStatistics
from fedglm.autoglm.light.pruning.errors import PruningError

Method = Literal["energy", "reconstruction", "taylor", "fisher", "l1", "random"]
Scores = npt.NDArray[np.float64]
DERIVATIVE_METHODS: frozenset[Method] = frozenset({"taylor", "fisher"})
"""Methods that need the loss's derivatives."""

_DAMPING = 1e-4  # share of the mean energy added to the Gram matrix's diagonal: dead units make it singular


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerScores:
    """Scores of a layer and its units; higher is needed more.

    Attributes:
        layer: Score of the whole layer.
        channels: Of the FFN channels, (I,), float64.
        groups: Of the KV groups, (groups,), float64.
    """

    layer: float
    channels: Scores
    groups: Scores


def score_units(
    model: PreTrainedModel, statistics: Sequence[LayerStatistics], method: Method, *, seed: int
) -> tuple[LayerScores, ...]:
    """Score all units of a GLM.

    Args:
        model: The model.
        statistics: What `collect_statistics` found for it; with derivatives for the methods that need them.
        method: One of those above.
        seed: Seed of the random scores.

    Raises:
        PruningError: The method needs derivatives, and the statistics have none.
    """
    rng = np.random.default_rng(seed)
    layers = zip(model.model.layers, statistics, strict=True)
    if method == "random":
        return tuple(_draw(rng, layer) for layer, _ in layers)
    if method == "l1":
        return tuple(_mean_magnitudes(layer) for layer, _ in layers)
    if method in DERIVATIVE_METHODS:
        return tuple(_from_derivatives(layer_statistics, method) for _, layer_statistics in layers)
    return tuple(_from_energies(layer, layer_statistics, method) for layer, layer_statistics in layers)


def eliminate(weight: torch.Tensor, gram: torch.Tensor, width: int) -> Scores:
    """Eliminate units of inputs one by one, always the one whose loss the others can best make up for.

    The error of a linear map W without the inputs S, the others refitted, grows by tr(W_S (H^-1)_SS^-1 W_S^T), where
    H is the inputs' mean outer product; W and H^-1 are updated after each elimination (Hassibi and Stork 1993).

    Args:
        weight: W, (rows, units * width).
        gram: H, (units * width, units * width), float64.
        width: Number of inputs of a unit.

    Returns:
        Growth of the mean squared error when the unit went, (units,), float64; raised where it was less
        than for the unit before, so that sorting them gives the order of elimination.
    """
    units = weight.shape[1] // width
    damping = _DAMPING * gram.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    inverse = torch.linalg.inv(gram + damping * torch.eye(len(gram), dtype=torch.float64))
    left = weight.detach().double().clone()
    scores, gone, highest = np.zeros(units), np.zeros(units, dtype=bool), 0.0
    for _ in range(units):
        errors = _elimination_errors(left, inverse, torch.from_numpy(~gone), width)
        unit = int(errors.argmin())
        highest = max(highest * (1 + 1e-12), float(errors[unit]))  # no ties: sorting gives this order
        scores[unit], gone[unit] = highest, True
        own = slice(unit * width, (unit + 1) * width)
        step = torch.linalg.solve(inverse[own, own], inverse[own])  # (D, all)
        left.addmm_(left[:, own].clone(), step, alpha=-1)
        inverse.addmm_(inverse[:, own].clone(), step, alpha=-1)
    return scores


def _elimination_errors(left: torch.Tensor, inverse: torch.Tensor, alive: torch.Tensor, width: int) -> torch.Tensor:
    """Return the error that the elimination of each unit makes, (units,); infinite where it is gone."""
    units = len(alive)
    errors = torch.full((units,), torch.inf, dtype=torch.float64)
    if width == 1:  # hundreds of channels, each with a pivot that is one number
        errors[alive] = (left.square().sum(0) / inverse.diagonal())[alive]
        return errors
    blocks = inverse.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (units, D, D)
    columns = left.view(-1, units, width).permute(1, 2, 0)  # (units, D, rows)
    errors[alive] = (columns[alive] * torch.linalg.solve(blocks[alive], columns[alive])).sum((1, 2))
    return errors


def _from_energies(layer: Any, statistics: LayerStatistics, method: Method) -> LayerScores:
    output, groups = layer.self_attn.o_proj, layer.self_attn.k_proj.out_features // layer.self_attn.head_dim
    maps = (
        (layer.mlp.down_proj.weight.detach().cpu().double(), statistics.channel_gram, 1),
        (output.weight.detach().cpu().double(), statistics.head_gram, output.in_features // groups),
    )
    channels, heads = (
        eliminate(weight, gram, width) if method == "reconstruction" else _unit_energies(weight, gram, width)
        for weight, gram, width in maps
    )
    stream = max(statistics.stream_energy, np.finfo(np.float64).tiny)
    return LayerScores(layer=statistics.update_energy / stream, channels=channels / stream, groups=heads / stream)


def _unit_energies(weight: torch.Tensor, gram: torch.Tensor, width: int) -> Scores:
    """Return tr(W_S H_SS W_S^T) of each unit S: the mean squared norm of its output."""
    units = weight.shape[1] // width
    blocks = gram.view(units, width, units, width).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    columns = weight.view(-1, units, width).permute(1, 0, 2)
    energies: Scores = ((columns @ blocks) * columns).sum((1, 2)).numpy()
    return energies


def _from_derivatives(statistics: LayerStatistics, method: Method) -> LayerScores:
    def value(derivatives: GateDerivatives | None) -> Scores:
        if derivatives is None:
            raise PruningError(f"scores by {method} need derivatives: collect the statistics with them")
        found: Scores = (derivatives.absolute if method == "taylor" else derivatives.squared / 2).numpy()
        return found

    layer = float(value(statistics.layer)[0])
    return LayerScores(layer=layer, channels=value(statistics.channels), groups=value(statistics.groups))


def _mean_magnitudes(layer: Any) -> LayerScores:
    attention, mlp = layer.self_attn, layer.mlp
    gate, up = mlp.gate_up_proj.weight.detach().cpu().double().abs().chunk(2)
    down = mlp.down_proj.weight.detach().cpu().double().abs()
    groups = attention.k_proj.out_features // attention.head_dim
    rows = [each.weight.detach().cpu().double().abs().sum(1).view(groups, -1).sum(1)
            for each in (attention.q_proj, attention.k_proj, attention.v_proj)]  # fmt: skip
    output = attention.o_proj.weight.detach().cpu().double().abs().sum(0).view(groups, -1).sum(1)
    channels = gate.sum(1) + up.sum(1) + down.sum(0)
    heads = sum(rows) + output
    hidden, queries = len(down), attention.q_proj.out_features // groups
    group_size = hidden * (2 * queries + 2 * attention.head_dim)
    mean = (channels.sum() + heads.sum()) / (3 * hidden * len(channels) + group_size * groups)
    return LayerScores(
        layer=float(mean), channels=(channels / (3 * hidden)).numpy(), groups=(heads / group_size).numpy()
    )


def _draw(rng: np.random.Generator, layer: Any) -> LayerScores:
    groups = layer.self_attn.k_proj.out_features // layer.self_attn.head_dim
    return LayerScores(
        layer=float(rng.random()), channels=rng.random(layer.mlp.down_proj.in_features), groups=rng.random(groups)
    )
