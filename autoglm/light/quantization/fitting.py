"""Fitting: the scales, zero points and thresholds that suit a matrix, by its range or by its squared error."""

from __future__ import annotations

from typing import Final, Literal

import torch

from fedglm.autoglm.light.quantization.grids import Grid, expand_rows, split_blocks, to_float16
from fedglm.autoglm.light.quantization.scheme import Scheme

Fit = Literal["absmax", "mse"]
"""`absmax`: no weight is clipped. `mse`: the clipping with the least squared error, block by block."""

_SHRINKS: Final = 48
_LEAST_SHRINK: Final = 0.25
"""Factors of the range that are tried: with two or three bits the best clips more than half of it."""


def fit_grid(weight: torch.Tensor, scheme: Scheme, *, fit: Fit = "mse", importance: torch.Tensor | None = None) -> Grid:
    """Fit a grid to a matrix.

    Args:
        weight: Matrix, (rows, columns), float32.
        scheme: Scheme of the codes.
        fit: How the range is chosen; ternary scales are always those of least squared error.
        importance: Weight of each column's squared error, (columns,), float32, not negative, such as the mean square of
            the input that meets it; None counts all alike.

    Raises:
        ModelError: The columns do not suit the scheme, or a scale does not fit in float16.
    """
    rows = weight.shape[0]
    blocks = split_blocks(weight, scheme)
    counts = torch.ones_like(weight) if importance is None else importance.expand_as(weight).contiguous()
    weights = split_blocks(counts, scheme)  # padding counts for nothing
    if scheme.is_ternary:
        return _fit_ternary(weight, blocks, weights, scheme)
    grid = _fit_range(blocks, scheme, 1.0, rows)
    if fit == "mse":
        best = _block_errors(blocks, weights, grid)
        for step in range(1, _SHRINKS):
            rival = _fit_range(blocks, scheme, 1 - (1 - _LEAST_SHRINK) * step / (_SHRINKS - 1), rows)
            errors = _block_errors(blocks, weights, rival)
            better = expand_rows(errors < best, rows)
            best = torch.minimum(best, errors)
            zeros = None
            if grid.zeros is not None and rival.zeros is not None:
                zeros = torch.where(better, rival.zeros, grid.zeros)
            grid = Grid(scheme=scheme, scales=torch.where(better, rival.scales, grid.scales), zeros=zeros)
    return grid


def _fit_range(blocks: torch.Tensor, scheme: Scheme, shrink: float, rows: int) -> Grid:
    """Fit the codes' range to the weights' own, times `shrink`; zero is always within it."""
    if scheme.symmetric:
        # Half a step more than the greatest code: the greatest weight is then off by half a step, as any other may be.
        scales = blocks.abs().amax(dim=2) * (shrink / (scheme.high + 0.5))
        return Grid(scheme=scheme, scales=expand_rows(to_float16(scales), rows))
    least, most = blocks.amin(dim=2).clamp(max=0), blocks.amax(dim=2).clamp(min=0)
    scales = to_float16((most - least) * (shrink / (scheme.high - scheme.low)))
    zeros = torch.where(scales > 0, scheme.low - least * shrink / scales, 0.0).round().clamp(scheme.low, scheme.high)
    return Grid(scheme=scheme, scales=expand_rows(scales, rows), zeros=expand_rows(zeros, rows))


def _block_errors(blocks: torch.Tensor, weights: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Return the weighted squared error of each block, (rows, blocks) or (1, 1)."""
    rows, scheme = blocks.shape[0], grid.scheme
    scales = grid.scales[:rows, :, None]
    zeros = 0.0 if grid.zeros is None else grid.zeros[:rows, :, None]
    places = torch.where(scales > 0, blocks / scales, 0.0)
    values = ((places + zeros).round().clamp(scheme.low, scheme.high) - zeros) * scales
    return ((values - blocks).square() * weights).sum(dim=2)


def _fit_ternary(weight: torch.Tensor, blocks: torch.Tensor, weights: torch.Tensor, scheme: Scheme) -> Grid:
    """Choose thresholds, and as scales the (weighted) mean magnitude above them, which has the least squared error."""
    rows, magnitudes = weight.shape[0], blocks.abs()
    if scheme.codes == "sparse-ternary":
        thresholds = None
        kept = split_blocks(Grid(scheme=scheme, scales=weight).encode(weight), scheme) != 0
    else:
        real = split_blocks(torch.ones_like(weight), scheme) > 0
        thresholds = (
            _best_thresholds(magnitudes, weights) if scheme.zeros is None else _share(magnitudes, real, scheme.zeros)
        )
        kept = magnitudes > thresholds[..., None]
    counted = kept * weights
    totals = counted.sum(dim=2)
    scales = torch.where(totals > 0, (counted * magnitudes).sum(dim=2) / totals.clamp(min=1e-30), 0.0)
    return Grid(
        scheme=scheme,
        scales=expand_rows(to_float16(scales), rows),
        thresholds=None if thresholds is None else expand_rows(thresholds, rows),
    )


def _best_thresholds(magnitudes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return each block's threshold of least squared error: the k largest are kept that maximise (sum w m)^2 / sum w.

    Exact, by sorting (Li et al., arXiv:1605.04711, equation 6, with weights).
    """
    order = magnitudes.argsort(dim=2, descending=True, stable=True)
    ranked, counts = magnitudes.gather(2, order), weights.gather(2, order)
    gains = (ranked * counts).cumsum(dim=2).square() / counts.cumsum(dim=2).clamp(min=1e-30)
    best = gains.argmax(dim=2, keepdim=True)
    following = torch.cat([ranked[..., 1:], torch.zeros_like(ranked[..., :1])], dim=2)
    return ((ranked.gather(2, best) + following.gather(2, best)) / 2)[..., 0]


def _share(magnitudes: torch.Tensor, real: torch.Tensor, zeros: float) -> torch.Tensor:
    """Return thresholds that set this share of all weights to zero, as one multiple of each block's mean magnitude.

    `real` is False for the padding of the last block.
    """
    means = magnitudes.sum(dim=2) / real.sum(dim=2)
    relative = torch.where(means[..., None] > 0, magnitudes / means[..., None], 0.0)[real]
    count = round(zeros * relative.numel())
    if not count:
        return torch.zeros_like(means)
    return means * relative.kthvalue(count).values
