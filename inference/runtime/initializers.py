"""What fills a graph: each initializer's name says of which tensor it is made, and how.

====================  ==========================================================  =================================
name                  array                                                       shape
====================  ==========================================================  =================================
``TENSOR``            values, as a norm, a bias or an embedding has them          the tensor's
``TENSOR:T``          values of a Linear, transposed for ``MatMul``               (inputs, outputs)
``TENSOR:codes``      codes of an embedding                                       (rows, columns)
``TENSOR:scales:B``   its scales, for blocks of B columns                         (rows, ceil(columns / B))
``TENSOR:zeros:B``    its zero points                                             as its scales
``TENSOR:codes:T``    codes of a Linear; ``scales:B:T``, ``zeros:B:T`` likewise   transposed
``TENSOR+TENSOR``     any of these of several tensors, one above the other           rows added up
``rotary:cos``        cosines of the rotary angles; ``rotary:sin`` their sines    (max_length, rotary_dim / 2)
====================  ==========================================================  =================================

An initializer's dtype says the rest: float32 or float16 values, INT8 or INT4 codes. Codes of 2 and 3 bits and ternary
ones lie in INT4, so that one kernel serves them; a matrix with one scale a row repeats it for each of the graph's
blocks. Any QuantizedMatrix so fills a graph of its own bits or of more, or one of float32, with the same values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import Architecture
from fedglm.inference.runtime.skeleton import Initializer
from fedglm.inference.weights.quantized import QuantizedMatrix

Tensors: TypeAlias = Mapping[str, npt.NDArray[Any] | QuantizedMatrix]
FLOAT, INT8, FLOAT16, INT4 = 1, 3, 10, 22
"""``TensorProto.DataType``."""
CODES, SCALES, ZEROS, TRANSPOSED = "codes", "scales", "zeros", "T"
COSINES, SINES = "rotary:cos", "rotary:sin"
INT4_LOW, INT4_HIGH = -8, 7
_ARRAY_TYPES = {FLOAT: np.float32, INT8: np.int8, FLOAT16: np.float16, INT4: np.int8}


@dataclass(frozen=True)
class _Source:
    """A name, read: the tensors, their part ("" for values), the graph's block (0 for none), transposed or not."""

    tensors: tuple[str, ...]
    part: str
    block: int
    transposed: bool


def name_part(tensor: str, part: str, *, block: int = 0, transposed: bool = False) -> str:
    """Name an initializer made of a part of a tensor: "" for its values, `CODES`, `SCALES` or `ZEROS`."""
    words = [tensor, part, str(block or ""), TRANSPOSED if transposed else ""]
    return ":".join(word for word in words if word)


def join_names(tensors: Sequence[str]) -> str:
    """Name tensors that lie one above the other."""
    return "+".join(tensors)


def fits_int4(matrix: QuantizedMatrix) -> bool:
    """Tell whether an INT4 kernel can hold the codes and zero points, moved together where they are unsigned."""
    offset = int4_offset(matrix)
    if matrix.levels > INT4_HIGH - INT4_LOW + 1:
        return False
    zeros = np.array([0]) if matrix.zeros is None else matrix.zeros.astype(np.int16)
    return bool(zeros.size == 0 or (zeros.min() - offset >= INT4_LOW and zeros.max() - offset <= INT4_HIGH))


def int4_offset(matrix: QuantizedMatrix) -> int:
    """Return what is taken from the codes, and from the zero points, so that they lie in -8 to 7; 0 where they do."""
    return 0 if matrix.low >= INT4_LOW and matrix.high <= INT4_HIGH else matrix.low - INT4_LOW


def fill(initializer: Initializer, tensors: Tensors, architecture: Architecture) -> npt.NDArray[Any]:
    """Make the array of an initializer, contiguous; INT4 has two codes a byte, the first in the low half.

    Raises:
        InferenceError: There is no such tensor, or it does not fit the shape or the kernel.
    """
    array = _make_array(initializer, tensors, architecture)
    if array.shape != initializer.shape or array.dtype != _ARRAY_TYPES.get(initializer.dtype):
        raise InferenceError(
            f"the graph wants {initializer.name} as {initializer.shape} of ONNX type {initializer.dtype}, not "
            f"{array.shape} of {array.dtype}"
        )
    return pack_int4(array) if initializer.dtype == INT4 else np.ascontiguousarray(array)


def check_sizes(wanted: Sequence[Initializer], tensors: Tensors, architecture: Architecture) -> None:
    """Check a model's tensors against its configuration, and what a graph wants of them, before memory is taken.

    An honest graph holds each value once, a tied embedding twice, and beside codes at most a scale and a zero point for
    16 of them.

    Raises:
        InferenceError: A tensor is missing or has another shape than the configuration says; or the graph would take
            more memory than such a model does.
    """
    shapes = architecture.tensor_shapes()
    for name, shape in shapes.items():
        if name not in tensors:
            raise InferenceError(f"the model has no tensor {name}, which its configuration asks for")
        if tensors[name].shape != shape:
            raise InferenceError(f"{name} is {tensors[name].shape}, and its configuration says {shape}")
    values = sum(math.prod(shape) for shape in shapes.values()) + architecture.max_length * architecture.rotary_dim
    asked = sum(math.prod(one.shape) for one in wanted)
    if asked > 3 * values:
        raise InferenceError(f"the graph wants {asked} values of a model of {values}; fetch the release again")


def make_rotary_table(architecture: Architecture, function: np.ufunc) -> npt.NDArray[np.float32]:
    """Return the cosines or sines of all positions, (max_length, rotary_dim / 2); rounded where transformers rounds."""
    exponents = np.arange(0, architecture.rotary_dim, 2, dtype=np.float32) / np.float32(architecture.rotary_dim)
    powers = np.power(architecture.rope_theta, exponents.astype(np.float64)).astype(np.float32)
    frequencies = np.float32(1) / powers
    angles = np.arange(architecture.max_length, dtype=np.float32)[:, None] * frequencies
    table: npt.NDArray[np.float32] = function(angles)
    return table


def pack_int4(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Pack codes of -8 to 7 two a byte (ONNX, "4-bit integer types")."""
    nibbles = (codes.reshape(-1) & 15).astype(np.uint8)
    if nibbles.size % 2:
        nibbles = np.append(nibbles, np.uint8(0))
    packed: npt.NDArray[np.uint8] = nibbles[::2] | (nibbles[1::2] << np.uint8(4))
    return packed


def _make_array(initializer: Initializer, tensors: Tensors, architecture: Architecture) -> npt.NDArray[Any]:
    """Make it with the shape and the dtype that follow from its source, whatever the graph says of it."""
    if initializer.name in (COSINES, SINES):
        return make_rotary_table(architecture, np.cos if initializer.name == COSINES else np.sin)
    source = _read_name(initializer.name)
    parts = [_take_values(name, source, initializer, tensors) for name in source.tensors]
    array = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return array.T if source.transposed else array


def _take_values(name: str, source: _Source, initializer: Initializer, tensors: Tensors) -> npt.NDArray[Any]:
    tensor = tensors.get(name)
    if tensor is None:
        raise InferenceError(f"the graph wants {name}, which the model does not have")
    if not source.part:
        values = tensor.dequantize() if isinstance(tensor, QuantizedMatrix) else tensor
        return values.astype(np.float16 if initializer.dtype == FLOAT16 else np.float32, copy=False)
    if not isinstance(tensor, QuantizedMatrix):
        raise InferenceError(f"the graph wants {name} quantized, but it is not; quantize it first")
    return _take_part(name, tensor, source, initializer)


def _take_part(name: str, matrix: QuantizedMatrix, source: _Source, initializer: Initializer) -> npt.NDArray[Any]:
    offset = 0
    if initializer.dtype == INT4 and source.part != SCALES:
        if not fits_int4(matrix):
            raise InferenceError(
                f"{name}: codes from {matrix.low} to {matrix.high} do not fit an INT4 kernel; take INT8"
            )
        offset = int4_offset(matrix)
    match source.part:
        case "codes":
            return (matrix.codes.astype(np.int16) - offset).astype(np.int8) if offset else matrix.codes
        case "scales":
            return matrix.scales[:, _block_sources(name, matrix, source.block)]
        case "zeros":
            zeros = np.zeros(matrix.scales.shape, np.int8) if matrix.zeros is None else matrix.zeros
            return (zeros.astype(np.int16) - offset).astype(np.int8)[:, _block_sources(name, matrix, source.block)]
    raise InferenceError(f"the graph wants {initializer.name}, and a quantized matrix has no such part")


def _block_sources(name: str, matrix: QuantizedMatrix, block: int) -> npt.NDArray[np.intp]:
    """Return, for each of the graph's blocks of columns, the number of the matrix's block that it lies in."""
    columns = matrix.shape[1]
    if block < 1 or (matrix.block % block and matrix.block < columns):
        raise InferenceError(f"{name}: blocks of {matrix.block} columns do not fit the graph's of {block}")
    return np.arange(0, columns, block) // matrix.block


def _read_name(name: str) -> _Source:
    tensors, *words = name.split(":")
    transposed = words[-1:] == [TRANSPOSED]
    words = words[: len(words) - transposed]
    part, *rest = words or [""]
    block = int(rest[0]) if rest and rest[0].isascii() and rest[0].isdecimal() and len(rest[0]) < 10 else 0
    return _Source(tuple(tensors.split("+")), part, block, transposed)
