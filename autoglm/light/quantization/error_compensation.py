"""Error compensation: the error of each column is made up for by the columns that are not yet rounded (GPTQ).

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv:2210.17323,
section 3; with scales fixed beforehand, and columns in the order of their inputs' energy.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import torch

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.quantization.grids import Grid

_DAMPING: Final = 0.01
"""Share of the mean of the diagonal that is added to it (GPTQ, section 3.3): the moments of few inputs are singular."""
_PANEL: Final = 64
"""Columns after which the rest of the matrix is updated: one product of matrices instead of many of vectors."""


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
