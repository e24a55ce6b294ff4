"""Finding the largest magnitudes at the speed of memory, compiled by numba; the tests hold a numpy twin of each kernel.

A float32 without its sign bit orders as an integer exactly as its magnitude does, with infinity and NaN on top. So all
kernels compare magnitudes as int32 *bits*: nothing depends on how a machine treats subnormals, and values that are not
finite are among the largest.

The loops over whole vectors process 32 elements at a time, which the intrinsics below express in LLVM's vector types:
numba's own vectorizer compiles no loop that also records *where* an element is. Stores bypass the cache: they would
evict what is read, and their lines would be fetched only to be overwritten. That takes 1.2 instead of 1.6 times as long
as `np.copyto`.
"""

# ruff: noqa: ARG001 - numba passes an intrinsic more arguments than it needs

from typing import Any, Final

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types

from fedglm.compression.kernels.compiled import inlined, kernel, lowest_bit
from fedglm.compression.kernels.scatter import AHEAD, prefetch
from fedglm.compression.vectors import Positions, Vector

LANES: Final = 32
ALIGNMENT: Final = 64
"""Alignment in bytes of a store that bypasses the cache."""
_MAGNITUDE: Final = 0x7FFFFFFF
_FLOATS = ir.VectorType(ir.FloatType(), LANES)
_INTS = ir.VectorType(ir.IntType(32), LANES)


def _lane_pointer(context: Any, builder: Any, array: Any, value: Any, start: Any) -> Any:
    """Return a pointer to `array[start : start + LANES]` as a vector."""
    data = context.make_array(array)(context, builder, value).data
    return builder.bitcast(builder.gep(data, [start]), _FLOATS.as_pointer())


def _broadcast(builder: Any, scalar: Any, kind: ir.VectorType) -> Any:
    """Return a vector with `scalar` in each lane."""
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(_INTS, [0] * LANES))


def _compare_magnitudes(builder: Any, floats: Any, threshold: Any) -> Any:
    """Return a mask whose bit j is set where the magnitude bits in lane j are at least `threshold`."""
    magnitudes = builder.and_(builder.bitcast(floats, _INTS), ir.Constant(_INTS, [_MAGNITUDE] * LANES))
    reached = builder.icmp_signed(">=", magnitudes, _broadcast(builder, threshold, _INTS))
    return builder.zext(builder.bitcast(reached, ir.IntType(LANES)), ir.IntType(64))


@inlined
def _compensate_lanes(_: Any, delta: Any, residual: Any, factor: Any, threshold: Any, out: Any, start: Any) -> Any:
    """Store `delta + residual * factor` of LANES elements, bypassing the cache, and return their mask."""
    signature = types.int64(delta, residual, types.float32, types.int32, out, types.int64)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        delta, residual, factor, threshold, out, start = values
        delta, residual, out = (
            _lane_pointer(context, builder, signature.args[at], value, start)
            for at, value in ((0, delta), (1, residual), (4, out))
        )
        old = builder.fmul(builder.load(residual, align=4), _broadcast(builder, factor, _FLOATS))
        update = builder.fadd(builder.load(delta, align=4), old)
        store = builder.store(update, out, align=ALIGNMENT)
        store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return _compare_magnitudes(builder, update, threshold)

    return signature, generate


@inlined
def _compare_lanes(_: Any, vector: Any, threshold: Any, start: Any) -> Any:
    """Return the mask of LANES elements."""
    signature = types.int64(vector, types.int32, types.int64)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        vector, threshold, start = values
        floats = builder.load(_lane_pointer(context, builder, signature.args[0], vector, start), align=4)
        return _compare_magnitudes(builder, floats, threshold)

    return signature, generate


@inlined
def _magnitude_bits(_: Any, number: Any) -> Any:
    """Return the bits of a float32 without its sign."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.and_(builder.bitcast(values[0], ir.IntType(32)), ir.Constant(ir.IntType(32), _MAGNITUDE))

    return types.int32(types.float32), generate


@inlined
def _fence(_: Any) -> Any:
    """Order the stores that bypassed the cache before all later ones, as other threads see them."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@kernel
def compensate(
    delta: Vector,
    residual: Vector,
    factor: np.float32,
    threshold: np.int32,
    head: int,
    out: Vector,
    positions: Positions,
    values: Vector,
) -> int:
    """Write `delta + residual * factor` to `out`, and collect the elements whose magnitude bits reach `threshold`.

    The sums have the bits of numpy's multiplication and addition, each rounded. `out` shares no memory with the others,
    and `out[head]` lies at a multiple of `ALIGNMENT` bytes. `positions` and `values` have room for the expected number
    of elements: those that do not fit are counted, not written. Returns the count.
    """
    count = 0
    start = 0
    while start < delta.size:
        if start >= head and start + LANES <= delta.size:
            mask = _compensate_lanes(delta, residual, factor, threshold, out, start)
            step = LANES
        else:
            update = delta[start] + residual[start] * factor
            out[start] = update
            mask = np.int64(_magnitude_bits(update) >= threshold)
            step = 1
        while mask != 0:
            position = start + lowest_bit(mask)
            mask &= mask - 1
            if count < positions.size:
                positions[count] = position
                # Not read from `out`: a store that bypassed the cache would be read back from memory.
                values[count] = delta[position] + residual[position] * factor
            count += 1
        start += step
    _fence()
    return count


@kernel
def collect(vector: Vector, threshold: np.int32, ties: int, positions: Positions, values: Vector) -> int:
    """Collect the elements whose magnitude bits exceed `threshold`, and the first `ties` elements that equal it.

    `positions` and `values` are as in `compensate`. Returns the count.
    """
    count = 0
    start = 0
    while start < vector.size:
        if start + LANES <= vector.size:
            mask = _compare_lanes(vector, threshold, start)
            step = LANES
        else:
            mask = np.int64(_magnitude_bits(vector[start]) >= threshold)
            step = 1
        while mask != 0:
            position = start + lowest_bit(mask)
            mask &= mask - 1
            if _magnitude_bits(vector[position]) == threshold:
                if ties == 0:
                    continue
                ties -= 1
            if count < positions.size:
                positions[count] = position
                values[count] = vector[position]
            count += 1
        start += step
    return count


@kernel
def _sample_position(index: int, count: int, size: int) -> int:
    """Choose a position in segment `index` of the `count` segments of `size` elements: Knuth's multiplicative hash."""
    start = index * size // count
    width = (index + 1) * size // count - start
    return start + (((index * 0x9E3779B1) & 0xFFFFFFFF) * width >> 32)


@kernel
def sample(delta: Vector, residual: Vector, factor: np.float32, out: Vector) -> None:
    """Fill `out` with one value of `delta + residual * factor` from each of `out.size` segments of about equal length.

    A hash chooses the place within a segment, so that the sample misses no pattern of rows or columns. `residual` may
    be empty: then the sample is one of `delta` alone.
    """
    for index in range(out.size):
        if index + AHEAD < out.size:
            ahead = _sample_position(index + AHEAD, out.size, delta.size)
            prefetch(delta, ahead)
            if residual.size:
                prefetch(residual, ahead)
        position = _sample_position(index, out.size, delta.size)
        value = delta[position]
        if residual.size:
            value = value + residual[position] * factor
        out[index] = value


@kernel
def nth_largest(vector: Vector, rank: int) -> tuple[int, int]:
    """Return the bits of the `rank`-th largest magnitude, and how many that equal it are among the `rank` largest.

    A radix selection, the highest bits first, in one pass for each 11 or 10 bits; `rank` is from 1 to `vector.size`.
    """
    prefix = 0
    for shift, width in ((20, 11), (10, 10), (0, 10)):
        # Four counters per digit are used in turn, because counting the same one twice in a row waits for the memory.
        # The last digit is for elements with another prefix: a branch would be mispredicted too often.
        counts = np.zeros((4, (1 << width) + 1), np.int64)
        for index in range(vector.size):
            magnitude = int(_magnitude_bits(vector[index]))
            digit = (magnitude >> shift) & ((1 << width) - 1)
            if magnitude >> (shift + width) != prefix:
                digit = 1 << width
            counts[index & 3, digit] += 1
        total = counts[0] + counts[1] + counts[2] + counts[3]
        digit = (1 << width) - 1
        while total[digit] < rank:
            rank -= total[digit]
            digit -= 1
        prefix = (prefix << width) | digit
    return prefix, rank


@kernel
def keep(positions: Positions, values: Vector, threshold: np.int32, ties: int) -> int:
    """Move the elements that `collect` would choose among `values` to the front, in order. Returns the count."""
    kept = 0
    for index in range(values.size):
        magnitude = _magnitude_bits(values[index])
        taken = int(magnitude > threshold)
        if magnitude == threshold and ties > 0:
            ties -= 1
            taken = 1
        # Written in any case, and overwritten if not taken: a branch would be mispredicted too often.
        positions[kept] = positions[index]
        values[kept] = values[index]
        kept += taken
    return kept
