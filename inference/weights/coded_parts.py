"""What of a model lies in the entropy code: two pools of float16 numbers, and the digits of matrices.

`walk_parts` is the one description of the code's order and models; an encoder and a decoder follow it alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.weights.codes import walk_tree
from fedglm.inference.weights.fixed_width import Digits
from fedglm.inference.weights.halves import Halves, add_previous, subtract_previous, walk_halves
from fedglm.inference.weights.index import CODED_FLOATS, Entry, FloatEntry, Index, MatrixEntry
from fedglm.inference.weights.model import Tensor
from fedglm.inference.weights.packing import PACKINGS, CodedPacking
from fedglm.inference.weights.quantized import QuantizedMatrix
from fedglm.inference.weights.rans import Coder

_ZERO_LEVELS: Final = 256  # zero points are digits from -128 on


@dataclass(frozen=True, kw_only=True)
class CodedParts:
    """The parts of a model that are coded.

    Attributes:
        scales: Scales of all matrices, one after the other in the order of the index, (n,).
        floats: Elements of all coded tensors of floats, likewise.
        digits: Digits of the matrices in a coded packing, by name.
        zeros: Zero points, (rows, blocks), int8, by name.
    """

    scales: Halves
    floats: Halves
    digits: Mapping[str, Digits]
    zeros: Mapping[str, npt.NDArray[np.int8]]


def walk_parts(
    coder: Coder, index: Index, given: Mapping[str, Tensor] | None, previous: Mapping[str, Tensor]
) -> CodedParts:
    """Code the parts of a model.

    Args:
        coder: The coder.
        index: How the model is packed.
        given: Its tensors, for an encoder; None for a decoder.
        previous: Tensors of the earlier release that it is coded from; empty for none.

    Raises:
        InferenceError: A matrix is coded from an earlier one that is not there, or the code is damaged.
    """
    scales = walk_pool(
        coder,
        None if given is None else gather_scales(index.entries, given),
        gather_scales(index.entries, previous),
        from_previous=index.scales_from_previous,
    )
    floats = walk_pool(
        coder,
        None if given is None else gather_floats(index.entries, given),
        gather_floats(index.entries, previous),
        from_previous=index.floats_from_previous,
    )
    digits, zeros = dict[str, Digits](), dict[str, npt.NDArray[np.int8]]()
    for entry in index.entries:
        if not isinstance(entry, MatrixEntry):
            continue
        packing, tensor = PACKINGS[entry.packing], None if given is None else given[entry.name]
        if isinstance(packing, CodedPacking):
            old = find_digits(entry, previous.get(entry.name))
            coded = packing.walk(coder, find_digits(entry, tensor), entry.shape, entry.levels, old)
            digits[entry.name] = coded
        if entry.zeros:
            points = None
            if isinstance(tensor, QuantizedMatrix) and tensor.zeros is not None:
                points = tensor.zeros.view(np.uint8) ^ np.uint8(128)
            zeros[entry.name] = (walk_tree(coder, points, entry.blocks, _ZERO_LEVELS) ^ np.uint8(128)).view(np.int8)
    # After all else: what an encoder hides in the first states of its lanes is read last (`rans`).
    for entry in index.entries:
        if isinstance(entry, MatrixEntry) and _leaves_signs(entry):
            _walk_signs(coder, digits[entry.name], None if given is None else find_digits(entry, given[entry.name]))
    return CodedParts(scales=scales, floats=floats, digits=digits, zeros=zeros)


def _leaves_signs(entry: MatrixEntry) -> bool:
    packing = PACKINGS[entry.packing]
    return isinstance(packing, CodedPacking) and packing.leaves_signs


def _walk_signs(coder: Coder, coded: Digits, given: Digits | None) -> None:
    """Code the signs of ternary digits, those that are not 1, and write them into `coded`."""
    filled = coded != 1
    signs = coder.code_raw(None if given is None else given[filled] == 2, int(np.count_nonzero(filled)))
    coded[filled] = signs.view(np.uint8) << 1


def walk_pool(coder: Coder, halves: Halves | None, base: Halves, *, from_previous: bool) -> Halves:
    """Code a pool of numbers, as they are or as differences to `base`, which has as many."""
    if not from_previous:
        return walk_halves(coder, halves, base.size)
    differences = None if halves is None else subtract_previous(halves, base)
    return add_previous(walk_halves(coder, differences, base.size), base)


def gather_scales(entries: Sequence[Entry], tensors: Mapping[str, Tensor]) -> Halves:
    """Return the scales of all matrices of the index, one after the other; 0 for those that are not there."""
    found = list[npt.NDArray[np.float32]]()
    for entry in entries:
        if isinstance(entry, MatrixEntry):
            tensor = tensors.get(entry.name)
            if isinstance(tensor, QuantizedMatrix) and tensor.scales.shape == entry.blocks:
                found.append(tensor.scales)
            else:
                found.append(np.zeros(entry.blocks, np.float32))
    return _to_halves(found)


def gather_floats(entries: Sequence[Entry], tensors: Mapping[str, Tensor]) -> Halves:
    """Return the elements of all coded tensors of floats, one after the other; 0 for those that are not there."""
    found = list[npt.NDArray[np.float32]]()
    for entry in entries:
        if isinstance(entry, FloatEntry) and entry.dtype == CODED_FLOATS:
            tensor = tensors.get(entry.name)
            if isinstance(tensor, np.ndarray) and tensor.shape == entry.shape:
                found.append(tensor)
            else:
                found.append(np.zeros(entry.shape, np.float32))
    return _to_halves(found)


def code_digits(matrix: QuantizedMatrix) -> Digits:
    """Return the codes of a matrix as digits, (rows, columns), uint8: 0 for its least code."""
    return (matrix.codes.astype(np.int16) - matrix.low).astype(np.uint8)


def find_digits(entry: MatrixEntry, tensor: Tensor | None) -> Digits | None:
    """Return the digits of a matrix; None where it has not the shape and the range of codes of the entry."""
    if not isinstance(tensor, QuantizedMatrix):
        return None
    fits = (tensor.shape, tensor.low, tensor.high) == (entry.shape, entry.low, entry.high)
    return code_digits(tensor) if fits else None


def _to_halves(arrays: Sequence[npt.NDArray[np.float32]]) -> Halves:
    with np.errstate(over="ignore"):  # an earlier release may have had other floats there
        halves = [array.reshape(-1).astype(np.float16) for array in arrays]
    return np.concatenate([np.empty(0, np.float16), *halves])
