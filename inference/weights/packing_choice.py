"""The choice of a packing for each tensor: the shortest one, measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.coded_parts import code_digits, find_digits, gather_floats, gather_scales, walk_pool
from fedglm.inference.weights.halves import Halves
from fedglm.inference.weights.index import CODED_FLOATS, FloatEntry, Index, MatrixEntry
from fedglm.inference.weights.model import Tensor
from fedglm.inference.weights.packing import PACKINGS, FixedPacking
from fedglm.inference.weights.quantized import QuantizedMatrix
from fedglm.inference.weights.rans import MAX_LANES, PROBABILITY_BITS, Bits, Probabilities, Sizes

_MIN_LANES: Final = 8
_BYTES_PER_LANE: Final = 1024  # a lane costs about four
_CODES_PER_LANE: Final = 1 << 15
_MAX_CODED_FLOATS: Final = 1 << 16  # of a tensor: a float16 has sixteen bits to code, and a large matrix saves little


class CodeLength:
    """Takes bits like an encoder, and only adds up what they would cost.

    Attributes:
        lanes: Number of lanes.
        bits: Length of the code in bits.
    """

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self.bits = 0.0

    def code_bits(self, bits: Bits | None, probability: Probabilities) -> Bits:
        """Take bits; see `Coder`."""
        if bits is None:
            raise TypeError("what is measured is told the bits")
        self.code_known(bits, probability, np.array([bits.size]))
        return bits

    def code_known(self, bits: Bits, probability: Probabilities, sizes: Sizes) -> None:  # noqa: ARG002 - all add up
        """Take bits for many calls; see `Coder`."""
        one = probability / (1 << PROBABILITY_BITS)
        self.bits -= float(np.log2(np.where(bits, one, 1 - one)).sum())

    def code_raw(self, bits: Bits | None, count: int) -> Bits:
        """Take raw bits; see `Coder`."""
        if bits is None:
            raise TypeError("what is measured is told the bits")
        self.bits += count
        return bits


def choose_index(tensors: Mapping[str, Tensor], previous: Mapping[str, Tensor], *, compact: bool) -> Index:
    """Choose how to pack a model.

    Args:
        tensors: Its tensors, in the order of the file.
        previous: Tensors of an earlier release that a reader has; empty for none.
        compact: Whether to take the shortest packing of each matrix; else the shortest at a fixed width.

    Returns:
        The index, without the lengths of the entropy code.

    Raises:
        InferenceError: A matrix is empty.
    """
    lanes = _choose_lanes(tensors)
    entries = tuple(
        _choose_matrix(name, tensor, previous.get(name), lanes=lanes, compact=compact)
        if isinstance(tensor, QuantizedMatrix)
        else FloatEntry(name, tensor.shape, _choose_floats(tensor, compact=compact))
        for name, tensor in tensors.items()
    )
    return Index(
        lanes=lanes,
        words=0,
        raw=0,
        scales_from_previous=bool(previous)
        and _differences_pay(gather_scales(entries, tensors), gather_scales(entries, previous), lanes),
        floats_from_previous=bool(previous)
        and _differences_pay(gather_floats(entries, tensors), gather_floats(entries, previous), lanes),
        entries=entries,
    )


def _choose_lanes(tensors: Mapping[str, Tensor]) -> int:
    """Choose the number of lanes, a power of two: so many that they cost at most half a percent of the code."""
    size = codes = 0.0
    for tensor in tensors.values():
        if isinstance(tensor, QuantizedMatrix) and tensor.codes.size:
            share = np.bincount(tensor.codes.reshape(-1).view(np.uint8)) / tensor.codes.size
            size -= tensor.codes.size * float((share[share > 0] * np.log2(share[share > 0])).sum()) / 8
            codes += tensor.codes.size
    wanted = max(_MIN_LANES, size / _BYTES_PER_LANE, codes / _CODES_PER_LANE)
    return int(min(MAX_LANES, 1 << round(np.log2(wanted))))


def _choose_matrix(
    name: str, tensor: QuantizedMatrix, previous: Tensor | None, *, lanes: int, compact: bool
) -> MatrixEntry:
    if not tensor.codes.size:
        raise InferenceError(f"{name} is empty: leave it out")
    entry = MatrixEntry(
        name, tensor.shape, "bits", tensor.block, tensor.low, tensor.high, zeros=tensor.zeros is not None
    )
    digits, old = code_digits(tensor), find_digits(entry, previous)
    costs = dict[str, float]()
    for packing_name, packing in PACKINGS.items():
        if not packing.takes(tensor.levels):
            continue
        if isinstance(packing, FixedPacking):
            if packing.fits(digits):
                costs[packing_name] = packing.size(digits.size, tensor.levels)
        elif compact and (old is not None or not packing.needs_previous):
            length = CodeLength(lanes)
            packing.walk(length, digits, tensor.shape, tensor.levels, old)
            signs = np.count_nonzero(digits != 1) if packing.leaves_signs else 0
            costs[packing_name] = (length.bits + signs) / 8
    return replace(entry, packing=min(costs, key=lambda packing_name: costs[packing_name]))


def _choose_floats(values: npt.NDArray[np.float32], *, compact: bool) -> str:
    with np.errstate(over="ignore"):
        exact = values.astype(np.float16).astype(np.float32).tobytes() == values.tobytes()
    if not exact:
        return "f32"
    return CODED_FLOATS if compact and values.size <= _MAX_CODED_FLOATS else "f16"


def _differences_pay(halves: Halves, base: Halves, lanes: int) -> bool:
    """Return whether a pool of numbers is shorter as differences to an earlier one."""
    lengths = CodeLength(lanes), CodeLength(lanes)
    for length, from_previous in zip(lengths, (False, True), strict=True):
        walk_pool(length, halves, base, from_previous=from_previous)
    return lengths[1].bits < lengths[0].bits
