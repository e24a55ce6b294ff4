"""Grids: the scales, zero points and thresholds of a matrix, and the codes that follow from them.

Everything is computed in float32 by torch, for post-training quantization and for fake quantization alike, so that a
packed matrix equals what was trained. Rows are the outputs of a Linear, columns its inputs; a block is a run of
columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.quantization.scheme import SPARSE_GROUP, Scheme
from fedglm.inference.weights.quantized import QuantizedMatrix

_GREATEST = torch.finfo(torch.float16).max


@dataclass(frozen=True, eq=False, kw_only=True)
class Grid:
    """Where the codes of a matrix lie.

    Attributes:
        scheme: Scheme of the codes.
        scales: Step between codes, (rows, blocks), float32, each exactly a float16.
        zeros: Zero points, (rows, blocks), float32, whole numbers; None where all are 0.
        thresholds: Magnitude above which a ternary code is not 0, (rows, blocks), float32; None for other codes.
    """

    scheme: Scheme
    scales: torch.Tensor
    zeros: torch.Tensor | None = None
    thresholds: torch.Tensor | None = None

    def spread(self, values: torch.Tensor, columns: int) -> torch.Tensor:
        """Repeat each block's value for each of its columns: (rows, blocks) to (rows, columns)."""
        if values.shape[1] == 1:
            return values.expand(-1, columns)
        return values.repeat_interleave(self.scheme.columns_per_scale(columns), dim=1)[:, :columns]

    def positions(self, weight: torch.Tensor) -> torch.Tensor:
        """Return each weight in units of its step, zero point included, before rounding; 0 where the scale is 0."""
        scales = self.spread(self.scales, weight.shape[1])
        # A division by 0 would give its NaN to the gradient even where it is not chosen.
        places = torch.where(scales > 0, weight / scales.where(scales > 0, 1.0), 0.0)
        return places if self.zeros is None else places + self.spread(self.zeros, weight.shape[1])

    def encode(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the codes, (rows, columns), float32; a zero is never negative, for an integer knows no such zero."""
        return self._round(weight) + 0.0

    def _round(self, weight: torch.Tensor) -> torch.Tensor:
        scheme, columns = self.scheme, weight.shape[1]
        if scheme.codes == "sparse-ternary":
            return _keep_largest(weight)
        if scheme.codes == "ternary":
            if self.thresholds is None:
                raise TypeError("a ternary grid has thresholds")
            return torch.where(weight.abs() > self.spread(self.thresholds, columns), weight.sign(), 0.0)
        return self.positions(weight).round().clamp(scheme.low, scheme.high)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Return the values of codes, (rows, columns), float32: one rounded product each, as `dequantize` computes."""
        columns = codes.shape[1]
        if self.zeros is not None:
            codes = codes - self.spread(self.zeros, columns)
        return codes * self.spread(self.scales, columns)

    def to_matrix(self, codes: torch.Tensor) -> QuantizedMatrix:
        """Return codes and grid as the matrix that is packed."""
        scheme = self.scheme
        return QuantizedMatrix(
            codes=codes.detach().cpu().numpy().astype(np.int8),
            scales=self.scales.detach().cpu().numpy(),
            zeros=None if self.zeros is None else self.zeros.cpu().numpy().astype(np.int8),
            block=scheme.columns_per_scale(codes.shape[1]),
            low=scheme.low,
            high=scheme.high,
        )


def _keep_largest(weight: torch.Tensor) -> torch.Tensor:
    """Return the signs of all but the smallest of each four columns, (rows, columns); a zero counts as positive."""
    rows, columns = weight.shape
    smallest = weight.abs().view(rows, columns // SPARSE_GROUP, SPARSE_GROUP).argmin(dim=2, keepdim=True)
    signs = torch.where(weight < 0, -1.0, 1.0).view(rows, -1, SPARSE_GROUP)
    return signs.scatter(2, smallest, 0.0).view(rows, columns)


def to_float16(scales: torch.Tensor) -> torch.Tensor:
    """Round scales to float16, in which they travel, and return them as float32.

    Raises:
        ModelError: A scale is not finite or too large for float16.
    """
    if not bool((scales <= _GREATEST).all()):  # NaN compares False
        raise ModelError(f"a weight is not finite, or its scale exceeds {_GREATEST:.0f}, the greatest float16")
    return scales.half().float()


def split_blocks(weight: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the weights by block, (rows, blocks, block), the last one padded with zeros; (1, 1, all) for a tensor.

    Raises:
        ModelError: The columns do not divide into the groups of a sparse scheme.
    """
    rows, columns = weight.shape
    if scheme.codes == "sparse-ternary" and columns % SPARSE_GROUP:
        raise ModelError(f"sparse-ternary needs a multiple of {SPARSE_GROUP} columns, not {columns}: choose ternary")
    if scheme.block == "tensor":
        return weight.reshape(1, 1, -1)
    block = scheme.columns_per_scale(columns)
    return functional.pad(weight, (0, -columns % block)).view(rows, -1, block)


def sum_blocks(values: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Return the sums over each row's blocks, (rows, blocks); with one scale a tensor, those of the rows."""
    rows, columns = values.shape
    block = scheme.columns_per_scale(columns)
    return functional.pad(values, (0, -columns % block)).view(rows, -1, block).sum(dim=2)


def expand_rows(values: torch.Tensor, rows: int) -> torch.Tensor:
    """Return one value a block for every row, (rows, blocks): a tensor's one value is repeated."""
    return values.expand(rows, -1).contiguous()
