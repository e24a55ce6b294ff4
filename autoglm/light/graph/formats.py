"""In which format a graph holds each tensor: what its kernels read, from what the model has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import EMBEDDING, read_architecture
from fedglm.inference.runtime.initializers import Tensors, fits_int4, int4_offset
from fedglm.inference.weights.quantized import QuantizedMatrix

Kind: TypeAlias = Literal["fp32", "fp16", "int8", "int4"]
GraphFormat: TypeAlias = Literal["fp32", "int8", "int4"]
MIN_BLOCK, MAX_BLOCK = 16, 128
"""Columns that share a scale in a kernel: a power of two. ONNX Runtime's kernels need 16; a quantized activation shares
a scale over the same block, and above 128 loses precision."""


@dataclass(frozen=True, kw_only=True)
class TensorFormat:
    """How a graph holds a tensor.

    Attributes:
        kind: Of its values or codes; "fp16" for the embedding alone.
        block: Number of columns that share a scale; 0 where it has none.
        zeros: Whether there are zero points.
    """

    kind: Kind
    block: int = 0
    zeros: bool = False


FP32 = TensorFormat(kind="fp32")


def choose_formats(tensors: Tensors, config: Mapping[str, Any], kind: GraphFormat) -> dict[str, TensorFormat]:
    """Choose the format of the embedding and of each Linear, with the output layer's also where it is tied.

    Args:
        tensors: The model.
        config: Its ``config.json``.
        kind: "fp32" holds the Linears as float32; "int8" the quantized ones in INT8; "int4" each quantized one in the
            narrowest kernel that holds its codes. The embedding keeps the narrowest format in any, because to look up
            a row costs the same in all. What is not quantized stays float32 (an embedding of float16 so).

    Raises:
        InferenceError: A tensor is missing, or its blocks fit no kernel.
    """
    architecture = read_architecture(config)
    formats = {}
    for name in (EMBEDDING, *architecture.linear_shapes()):
        source = architecture.head_source if name == architecture.head else name
        if source not in tensors:
            raise InferenceError(f"the model has no tensor {source}, which its configuration asks for")
        formats[name] = _choose_format(source, tensors[source], kind, is_embedding=name == EMBEDDING)
    return formats


def name_kernels(formats: Mapping[str, TensorFormat]) -> str:
    """Return which kernels multiply in a graph of these formats, such as "int8", or "int4 and int8" where both do.

    FP32 is named only where nothing is quantized; the embedding, in which rows are looked up, does not count.
    """
    kinds = sorted({form.kind for name, form in formats.items() if name != EMBEDDING} - {FP32.kind})
    return " and ".join(kinds) or FP32.kind


def _choose_format(name: str, tensor: Any, kind: GraphFormat, *, is_embedding: bool) -> TensorFormat:
    if not isinstance(tensor, QuantizedMatrix):
        return TensorFormat(kind="fp16") if is_embedding and tensor.dtype == np.float16 else FP32
    if kind == "fp32" and not is_embedding:
        return FP32
    narrow = fits_int4(tensor) and (kind == "int4" or is_embedding)
    has_zeros = tensor.zeros is not None or (narrow and int4_offset(tensor) != 0)
    return TensorFormat(kind="int4" if narrow else "int8", block=_kernel_block(name, tensor), zeros=has_zeros)


def _kernel_block(name: str, matrix: QuantizedMatrix) -> int:
    """Return the greatest block of a kernel that lies within the matrix's."""
    columns = matrix.shape[1]
    if matrix.block >= columns:  # one scale a row
        return min(max(1 << (columns - 1).bit_length(), MIN_BLOCK), MAX_BLOCK)
    block = min(matrix.block & -matrix.block, MAX_BLOCK)
    if block < MIN_BLOCK:
        raise InferenceError(
            f"{name}: no kernel has blocks of {matrix.block} columns; quantize in blocks of a multiple of {MIN_BLOCK}"
        )
    return block
