"""Fake quantization: a parametrization of a weight that trains while its values are those of the packed matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fedglm.autoglm.light.quantization.entropy import soft_length
from fedglm.autoglm.light.quantization.fitting import fit_grid
from fedglm.autoglm.light.quantization.grids import Grid, expand_rows, split_blocks, sum_blocks, to_float16
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.light.quantization.settings import Scales
from fedglm.inference.weights.quantized import QuantizedMatrix


class FakeQuantized(nn.Module):
    """Replaces a weight by the values of its codes; register it by ``torch.nn.utils.parametrize``.

    Gradients pass the rounding unchanged where the weight is within the codes' range, and are 0 beyond it (the
    straight-through estimator, Bengio et al., arXiv:1308.3432). Scales are the fitted ones times a gain for each block,
    rounded to float16 in each forward pass, so that what trains is what travels. Thresholds of ternary codes move with
    their scales.

    Args:
        weight: Weight to start from, (rows, columns), float32.
        scheme: Scheme of the codes.
        grid: Grid to start from; None fits one by squared error.
        scales: What moves the gains. Learned ones are exp(g) with g trained from 0. The gradient is that of Esser et
            al., "Learned Step Size Quantization", arXiv:1902.08153, section 2.1; for g Adam's step is a relative
            change, so that LSQ's scaling of the gradient is not needed, and weight decay pulls to the fitted scale.
        decay: Decay of the moving average a step; 1 keeps the fitted scales, 0 follows the weights at once.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        scheme: Scheme,
        *,
        grid: Grid | None = None,
        scales: Scales = "learned",
        decay: float = 0.99,
    ) -> None:
        super().__init__()
        weight = weight.detach()
        start = grid or fit_grid(weight, scheme)
        self.scheme, self.decay = scheme, decay
        self.base: torch.Tensor
        self.zeros: torch.Tensor | None
        self.thresholds: torch.Tensor | None
        self.first_range: torch.Tensor
        self.range: torch.Tensor
        self.register_buffer("base", start.scales.clone())
        self.register_buffer("zeros", start.zeros)
        self.register_buffer("thresholds", start.thresholds)
        self.register_buffer("first_range", self._measure_range(weight))
        self.register_buffer("range", self.first_range.clone())
        self.gain = nn.Parameter(torch.zeros_like(self.first_range)) if scales == "learned" else None
        self._seen = weight._version  # a tied weight is used twice a step, and its range averaged once

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the values of the weight's codes, (rows, columns), float32."""
        if self.training and self.gain is None and self.decay < 1 and weight._version != self._seen:
            self._seen = weight._version
            self.range.lerp_(self._measure_range(weight.detach()), 1 - self.decay)
        values: torch.Tensor = _Quantize.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
            weight, self._gains(), self.base, self.zeros, self.thresholds, self.scheme
        )
        return values

    @torch.no_grad()
    def export(self, weight: torch.Tensor) -> QuantizedMatrix:
        """Return the matrix whose dequantized values equal ``forward(weight)``, bit for bit."""
        grid = self._grid()
        return grid.to_matrix(grid.encode(weight))

    def code_length(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the total length of the codes in bits under an entropy code, a scalar with gradients."""
        with torch.no_grad():
            grid = self._grid()
            codes = grid.encode(weight)
        return soft_length(grid.positions(weight), codes, self.scheme)

    def _grid(self) -> Grid:
        return _make_grid(self._gains(), self.base, self.zeros, self.thresholds, self.scheme)

    def _gains(self) -> torch.Tensor:
        """Return the factor of each block's scale, (rows, blocks)."""
        if self.gain is not None:
            return expand_rows(self.gain.exp(), len(self.base))
        # A block that began as zeros, such as the row of a padding token, has scale 0 and keeps it.
        gains = torch.where(self.first_range > 0, self.range / self.first_range, 1.0)
        return expand_rows(gains, len(self.base))

    def _measure_range(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the mean magnitude of each block, (rows, blocks) or (1, 1)."""
        return split_blocks(weight, self.scheme).abs().mean(dim=2)


def _make_grid(
    gains: torch.Tensor,
    base: torch.Tensor,
    zeros: torch.Tensor | None,
    thresholds: torch.Tensor | None,
    scheme: Scheme,
) -> Grid:
    moved = None if thresholds is None else thresholds * gains
    return Grid(scheme=scheme, scales=to_float16(base * gains), zeros=zeros, thresholds=moved)


class _Quantize(torch.autograd.Function):
    """The values of a weight's codes, with straight-through gradients for the weight and LSQ's for the gains."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: torch.Tensor,
        gains: torch.Tensor,
        base: torch.Tensor,
        zeros: torch.Tensor | None,
        thresholds: torch.Tensor | None,
        scheme: Scheme,
    ) -> torch.Tensor:
        grid = _make_grid(gains, base, zeros, thresholds, scheme)
        codes = grid.encode(weight)
        ctx.grid = grid
        ctx.save_for_backward(weight, codes, base)
        return grid.decode(codes)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weight, codes, base = ctx.saved_tensors
        grid: Grid = ctx.grid
        scheme, columns = grid.scheme, weight.shape[1]
        places = grid.positions(weight)
        steps = codes if grid.zeros is None else codes - grid.spread(grid.zeros, columns)
        for_weight = grad
        if scheme.is_ternary:
            slopes = steps  # thresholds are given, so that the scale moves the values alone
        else:
            inside = (places >= scheme.low - 0.5) & (places <= scheme.high + 0.5)
            for_weight = grad * inside
            slopes = torch.where(inside, codes - places, steps)
        for_gains = sum_blocks(grad * slopes, scheme) * base
        return for_weight, for_gains, None, None, None, None
