"""Loops that numpy cannot express, compiled by numba; the tests hold a plain Python twin of each, which defines it.

Each kernel takes one fixed set of types, so it is compiled once per machine (in a second or less, about twelve for the
context code of positions) and then loaded from numba's cache: beside its file, or in the user's cache where the package
is read-only.
"""

# ruff: noqa: ARG001 - numba passes an intrinsic more arguments than it needs

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba.core import types
from numba.extending import intrinsic

from fedglm.compression.vectors import Positions

_Function = TypeVar("_Function", bound=Callable[..., Any])

_FILES: Final = sorted(Path(__file__).parent.glob("*.py"))
_SOURCES: Final = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()

DECODED: Final = 0
ENDS_EARLY: Final = 1
OUT_OF_RANGE: Final = 2
TRAILING: Final = 3


def kernel(function: _Function) -> _Function:
    """Compile a function at its first call, to run without the GIL; the next process loads it from numba's cache.

    That cache notices a change to a kernel's own file, but not to the functions it calls in other files. So the stamp
    by which it knows a file includes the hash of all of them.
    """
    if cast(Any, numba.config).DISABLE_JIT:
        return function
    try:
        compiled = numba.njit(nogil=True, cache=True)(function)
        index = cast(Any, compiled)._cache._cache_file
        index._source_stamp = (index._source_stamp, _SOURCES)
    except RuntimeError:  # no cache folder is writable, not even the user's: compile once per process
        compiled = numba.njit(nogil=True)(function)
    return cast(_Function, compiled)


def inlined(function: Callable[..., Any]) -> Any:
    """Decorate a function that emits LLVM instructions for a call within a kernel: a typed alias of `intrinsic`."""
    return intrinsic(function)


@inlined
def lowest_bit(_: Any, bits: Any) -> Any:
    """Return the index of the lowest bit that is set in an int64 other than 0."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.cttz(values[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), generate


@inlined
def _load_eight_bytes(_: Any, code: Any, at: Any) -> Any:
    """Return the bytes `code[at : at + 8]` as an int64, the first as its lowest."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        word = builder.bitcast(builder.gep(data, [values[1]]), ir.IntType(64).as_pointer())
        return builder.load(word, align=1)

    return types.int64(code, types.int64), generate


@kernel
def rice_encode(positions: Positions, parameter: int, out: npt.NDArray[np.uint8]) -> None:
    """Write the Golomb-Rice code of ascending `positions` (k,) to `out`, which has the exact length.

    Bits fill each byte from the lowest. A gap (the number of positions skipped since the last one) is coded as its
    quotient by 2**parameter in zeros, a one, and the remainder in `parameter` bits, the lowest first.
    """
    mask = (1 << parameter) - 1
    pending = 0  # bits not yet written, at most 7 + 1 + 48
    bits = 0
    at = 0
    previous = -1
    for position in positions:
        gap = position - previous - 1
        previous = position
        bits += gap >> parameter
        while bits >= 8:
            out[at] = pending & 0xFF
            pending >>= 8
            bits -= 8
            at += 1
        pending |= (((gap & mask) << 1) | 1) << bits
        bits += parameter + 1
        while bits >= 8:
            out[at] = pending & 0xFF
            pending >>= 8
            bits -= 8
            at += 1
    if bits:
        out[at] = pending


@kernel
def rice_decode(code: npt.NDArray[np.uint8], parameter: int, size: int, positions: Positions) -> int:
    """Fill `positions` (k,) from what `rice_encode` wrote; every position must be below `size`.

    Returns DECODED, or the fault: ENDS_EARLY, OUT_OF_RANGE, or TRAILING (bits after the last code word other than the
    zeros that fill its byte). It reads each byte once, whatever the bits are.
    """
    mask = (1 << parameter) - 1
    largest = size >> parameter
    position = np.int64(-1)
    index = 0
    start = 0  # in bits
    # A code word within the 57 bits that one load always provides needs no loop; the first longer one ends this.
    while index < positions.size and start <= 8 * (code.size - 8):
        word = (_load_eight_bytes(code, start >> 3) >> (start & 7)) & ((1 << 57) - 1)
        if word == 0:
            break
        quotient = lowest_bit(word)
        length = quotient + 1 + parameter
        if length > 57 or quotient > largest:
            break
        position += 1 + (quotient << parameter) + ((word >> (quotient + 1)) & mask)
        if position >= size:
            return OUT_OF_RANGE
        positions[index] = position
        index += 1
        start += length
    at = start >> 3
    pending = np.int64(0)
    bits = 0
    if start & 7:
        pending = np.int64(code[at]) >> (start & 7)
        bits = 8 - (start & 7)
        at += 1
    for rest in range(index, positions.size):
        quotient = 0
        while pending == 0:  # the run of zeros goes on past all pending bits
            quotient += bits
            bits = 0
            if at == code.size:
                return ENDS_EARLY
            while bits < 48 and at < code.size:
                pending |= np.int64(code[at]) << bits
                bits += 8
                at += 1
        while pending & 1 == 0:
            pending >>= 1
            bits -= 1
            quotient += 1
        pending >>= 1
        bits -= 1
        if quotient > largest:  # before the shift below can overflow
            return OUT_OF_RANGE
        while bits < parameter:
            if at == code.size:
                return ENDS_EARLY
            pending |= np.int64(code[at]) << bits
            bits += 8
            at += 1
        position += 1 + (quotient << parameter) + (pending & mask)
        pending >>= parameter
        bits -= parameter
        if position >= size:
            return OUT_OF_RANGE
        positions[rest] = position
    if pending != 0 or bits + 8 * (code.size - at) >= 8:
        return TRAILING
    return DECODED
