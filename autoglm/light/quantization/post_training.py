"""Post-training quantization of one matrix."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.quantization.error_compensation import fit_codes
from fedglm.autoglm.light.quantization.fitting import fit_grid
from fedglm.autoglm.light.quantization.grids import Grid
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.light.quantization.settings import Method
from fedglm.inference.weights.quantized import QuantizedMatrix


def quantize(
    weight: npt.NDArray[np.float32],
    scheme: Scheme,
    *,
    method: Method = "mse",
    moments: npt.NDArray[np.float64] | None = None,
) -> QuantizedMatrix:
    """Quantize a matrix.

    Args:
        weight: Matrix, (rows, columns), float32.
        scheme: Scheme of the codes.
        method: How scales and codes are chosen.
        moments: Second moments of its inputs, (columns, columns), float64; `weighted` and `compensated` need them.

    Raises:
        ModelError: The columns do not suit the scheme, a weight is not finite, or the method lacks moments.
    """
    values = torch.from_numpy(np.array(weight, dtype=np.float32))
    known = None if moments is None else torch.from_numpy(np.array(moments, dtype=np.float64))
    grid, codes = choose_codes(values, scheme, method=method, moments=known)
    return grid.to_matrix(codes)


def choose_codes(
    weight: torch.Tensor, scheme: Scheme, *, method: Method, moments: torch.Tensor | None
) -> tuple[Grid, torch.Tensor]:
    """Choose grid and codes, (rows, columns), float32, of a matrix of torch; as `quantize`."""
    if method in ("absmax", "mse"):
        grid = fit_grid(weight, scheme, fit="absmax" if method == "absmax" else "mse")
        return grid, grid.encode(weight)
    if moments is None:
        raise ModelError(f"method {method} needs the inputs' moments: calibrate on examples, or choose mse")
    grid = fit_grid(weight, scheme, importance=moments.diagonal().float())
    return fit_codes(weight, grid, moments) if method == "compensated" else (grid, grid.encode(weight))
