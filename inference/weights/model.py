"""A model in numpy: its tensors, its configuration and its task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.quantized import QuantizedMatrix

Tensor = npt.NDArray[np.float32] | QuantizedMatrix
"""What a tensor of a model is: floats of any shape, or a quantized matrix."""


@dataclass(frozen=True, eq=False, kw_only=True)
class NumpyModel:
    """A model without torch.

    Attributes:
        tensors: Tensors by name, as in transformers' state dict; the output layer of a tied model is left out.
        config: Content of transformers' ``config.json``.
        task: Content of ``task.json``.

    Raises:
        InferenceError: A tensor is neither float32 nor a quantized matrix.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    task: Mapping[str, Any]

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if not isinstance(tensor, QuantizedMatrix) and tensor.dtype != np.float32:
                raise InferenceError(f"{name} is {tensor.dtype}; a model holds float32 or quantized matrices")

    def count_parameters(self) -> int:
        """Return the number of parameters, those of quantized matrices included."""
        return sum(int(np.prod(tensor.shape, dtype=np.int64)) for tensor in self.tensors.values())


def same_tensors(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether two models' tensors have the same names, in any order, the same formats and the same bits."""
    return one.keys() == other.keys() and all(_same_bits(tensor, other[name]) for name, tensor in one.items())


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if isinstance(one, QuantizedMatrix) and isinstance(other, QuantizedMatrix):
        zeros = (one.zeros is None) == (other.zeros is None)
        if one.zeros is not None and other.zeros is not None:
            zeros = np.array_equal(one.zeros, other.zeros)
        return (
            (one.block, one.low, one.high) == (other.block, other.low, other.high)
            and zeros
            and np.array_equal(one.codes, other.codes)
            and _equal_floats(one.scales, other.scales)
        )
    if isinstance(one, QuantizedMatrix) or isinstance(other, QuantizedMatrix):
        return False
    return _equal_floats(one, other)


def _equal_floats(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    return one.shape == other.shape and one.tobytes() == other.tobytes()  # by bits: -0.0 is not 0.0, NaN is itself
