"""Adding a sparse update to a dense vector; the tests hold a numpy twin that defines it.

Each position lies in a cache line of its own, for which the processor waits. It fetches more lines at a time into its
second-level cache than into the first, so they are prefetched there, well ahead: that takes half the time.
"""

# ruff: noqa: ARG001 - numba passes an intrinsic more arguments than it needs

from typing import Any, Final

import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types

from fedglm.compression.kernels.compiled import inlined, kernel
from fedglm.compression.vectors import Positions

AHEAD: Final = 64
"""Number of elements between the one that is prefetched and the one that is processed."""


@inlined
def prefetch(_: Any, array: Any, index: Any) -> Any:
    """Prefetch the cache line of `array[index]` into the second-level cache; a hint that changes no result."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        line = builder.bitcast(builder.gep(data, [values[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [line.type, number, number, number])
        ask = builder.module.declare_intrinsic("llvm.prefetch", [line.type], kind)
        # To read, of middling locality (which is the second level), data.
        builder.call(ask, [line, ir.Constant(number, 0), ir.Constant(number, 2), ir.Constant(number, 1)])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@kernel
def add_at(accumulator: npt.NDArray[Any], positions: Positions, terms: npt.NDArray[Any]) -> bool:
    """Compute `accumulator[positions] += terms` in one pass; `accumulator` and `terms` have the same dtype.

    Returns False, with nothing changed, where a position lies outside.
    """
    inside = True
    for position in positions:
        inside &= (position >= 0) & (position < accumulator.size)
    if inside:
        for index in range(positions.size):
            if index + AHEAD < positions.size:
                prefetch(accumulator, positions[index + AHEAD])
            accumulator[positions[index]] += terms[index]
    return inside
