"""Error compensation: the error of each column is made up for by the columns that are not yet rounded (GPTQ).

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv:2210.17323,
section 3; with scales fixed beforehand, and columns in the order of their inputs' energy. Where a row or the tensor has
one scale, scale and codes are fitted in turn: of ternary codes that takes a third of the loss away (docs/log.md).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.quantization.grids import Grid, to_float16

_DAMPING: Final = 0.01
"""Share of the mean of the diagonal that is added to it (GPTQ, section 3.3): the moments of few inputs are singular."""
_TURNS: Final = 4
"""Of codes and scale; the gain of a fifth is lost in noise."""
_PANEL: Final = 64
"""Columns after which the rest of the matrix is updated: one product of matrices instead of many of vectors."""


def fit_codes(weight: torch.Tensor, grid: Grid, moments: torch.Tensor) -> tuple[Grid, torch.Tensor]:
    """Fit codes to a grid, and where a row or the tensor has one scale, the grid to the codes, in turn.

    Args:
        weight: Matrix, (rows, columns), float32.
        grid: The grid to start from.
        moments: Second moments of its inputs, (columns, columns), float64.

    Returns:
        The grid, and the codes, (rows, columns), float32.

    Raises:
        ModelError: The codes of one column depend on others'.
    """
    codes = compensate(weight, grid, moments)
    if isinstance(grid.scheme.block, int):
        return grid, codes
    best, error = (grid, codes), _row_errors(weight, grid.decode(codes), moments)
    for _ in range(_TURNS):
        grid = _refit_scales(weight, grid, codes, moments)
        best, error = _keep_better(best, error, (grid, codes), _row_errors(weight, grid.decode(codes), moments))
        codes = compensate(weight, grid, moments)
    return best


def _row_errors(weight: torch.Tensor, values: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each row's output, (rows, 1), float64."""
    off = (values - weight).double()
    return ((off @ moments) * off).sum(dim=1, keepdim=True)


def _keep_better(
    one: tuple[Grid, torch.Tensor], error: torch.Tensor, other: tuple[Grid, torch.Tensor], rival: torch.Tensor
) -> tuple[tuple[Grid, torch.Tensor], torch.Tensor]:
    """Return of each row, or of the whole tensor where it has one scale, grid and codes with the lesser error."""
    (grid, codes), (second, others) = one, other
    better = rival.sum() < error.sum() if grid.scheme.block == "tensor" else rival < error
    thresholds = grid.thresholds
    if thresholds is not None and second.thresholds is not None:
        thresholds = torch.where(better, second.thresholds, thresholds)
    kept = replace(grid, scales=torch.where(better, second.scales, grid.scales), thresholds=thresholds)
    return (kept, torch.where(better, others, codes)), torch.where(better, rival, error)


def _refit_scales(weight: torch.Tensor, grid: Grid, codes: torch.Tensor, moments: torch.Tensor) -> Grid:
    """Return the grid with the scales of least squared error in the outputs for these codes; thresholds move along."""
    steps = (codes if grid.zeros is None else codes - grid.spread(grid.zeros, codes.shape[1])).double()
    outputs = steps @ moments
    over, under = (outputs * weight).sum(dim=1, keepdim=True), (outputs * steps).sum(dim=1, keepdim=True)
    if grid.scheme.block == "tensor":
        over, under = over.sum().expand_as(over), under.sum().expand_as(under)
    scales = to_float16((over / under.where(under > 0, 1.0)).clamp(min=0).float())
    thresholds = grid.thresholds
    if thresholds is not None:
        thresholds = thresholds * torch.where(grid.scales > 0, scales / grid.scales.where(grid.scales > 0, 1.0), 1.0)
    return replace(grid, scales=scales, thresholds=thresholds)


def compensate(weight: torch.Tensor, grid: Grid, moments: torch.Tensor) -> torch.Tensor:
    """Return codes, (rows, columns), float32, that leave less error in the outputs than rounding each weight alone.

    Args:
        weight: Matrix, (rows, columns), float32.
        grid: Its grid.
        moments: Second moments of its inputs, (columns, columns), float64.

    Raises:
        ModelError: The codes of one column depend on others'.
    """
    if grid.scheme.codes == "sparse-ternary":
        raise ModelError("sparse-ternary codes are chosen four at a time: take method mse or weighted for them")
    columns = weight.shape[1]
    block = grid.scheme.columns_per_scale(columns)
    energy = moments.diagonal()
    damped = moments + torch.eye(columns, dtype=moments.dtype) * (_DAMPING * energy.mean()).clamp(min=1e-12)
    order = energy.argsort(descending=True, stable=True)
    inverse = torch.linalg.inv(damped[order][:, order])
    factor = torch.linalg.cholesky(inverse, upper=True)
    rest = weight.double()[:, order]
    codes = torch.empty_like(weight)
    for first in range(0, columns, _PANEL):
        last = min(first + _PANEL, columns)
        errors = torch.empty(len(weight), last - first, dtype=rest.dtype)
        for place in range(first, last):
            column = int(order[place])
            one = _one_block(grid, column // block)
            current = rest[:, place]
            code = one.encode(current.float()[:, None])
            codes[:, column] = code[:, 0]
            error = (current - one.decode(code)[:, 0]) / factor[place, place]
            rest[:, place + 1 : last] -= torch.outer(error, factor[place, place + 1 : last])
            errors[:, place - first] = error
        rest[:, last:] -= errors @ factor[first:last, last:]
    return codes


def _one_block(grid: Grid, number: int) -> Grid:
    """Return the grid of one block of every row."""
    chosen = slice(number, number + 1)
    return replace(
        grid,
        scales=grid.scales[:, chosen],
        zeros=None if grid.zeros is None else grid.zeros[:, chosen],
        thresholds=None if grid.thresholds is None else grid.thresholds[:, chosen],
    )
