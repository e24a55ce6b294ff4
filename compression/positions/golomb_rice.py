"""Ascending positions as Golomb-Rice coded gaps.

Golomb, "Run-length encodings" (1966); Rice and Plaunt (1971); for updates Sattler et al., arXiv 1903.02891, section 4.

    bytes  what
    1      Rice parameter r, 0 to 40
    ...    k code words, bits from the lowest of each byte, the last byte filled with zeros

The gaps of a memoryless support of density d are geometric, for which the best r comes within 3 % of the Shannon bound
of (-d log2 d - (1-d) log2 (1-d)) / d bits per position. r is chosen for each support, but one r codes all of it: rows
and columns in which the support clusters make the code no shorter.
"""

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.kernels import compiled
from fedglm.compression.vectors import Positions
from fedglm.compression.wire.envelope import Reader

MAX_PARAMETER = 40
"""The largest vector has 2**40 elements; the kernels have room for a code word of 48 bits beside a partial byte."""

_FAULTS = {
    compiled.ENDS_EARLY: "the position code ends early",
    compiled.OUT_OF_RANGE: "a position lies outside the vector",
    compiled.TRAILING: "the position code has bits after its end",
}


def pack(positions: Positions) -> bytes:
    """Code strictly ascending, non-negative `positions` of shape (k,)."""
    parameter, bits = _best_parameter(positions)
    code = np.empty(-(-bits // 8), np.uint8)
    compiled.rice_encode(positions, parameter, code)
    return bytes([parameter]) + code.tobytes()


def unpack(reader: Reader, count: int, size: int) -> Positions:
    """Decode `count` positions below `size` from the rest of `reader`.

    Raises:
        CodecError: The parameter is out of range, or the code is too short, too long or leads outside the vector.
    """
    (parameter,) = reader.take(1)
    return unpack_code(parameter, reader, count, size)


def unpack_code(parameter: int, reader: Reader, count: int, size: int) -> Positions:
    """Decode as `unpack` does, from a reader whose parameter is already read."""
    if parameter > MAX_PARAMETER:
        raise CodecError(f"a Rice parameter of {parameter}; the limit is {MAX_PARAMETER}")
    # A code word has at least parameter + 1 bits: allocate no memory for positions that cannot be there.
    if count > size or count * (parameter + 1) > 8 * reader.remaining:
        raise CodecError(f"{count} positions do not fit in {reader.remaining} bytes and a vector of {size}")
    positions = np.empty(count, np.int64)
    fault = compiled.rice_decode(reader.array("<u1", reader.remaining), parameter, size, positions)
    if fault != compiled.DECODED:
        raise CodecError(_FAULTS[fault])
    return positions


def _best_parameter(positions: Positions) -> tuple[int, int]:
    """Return the Rice parameter with the shortest code, and that code's length in bits.

    The length k (1 + r) + sum(gap >> r) is convex in r, since each further halving of a number removes less. Above the
    logarithm of the mean gap a further bit saves nothing, so the search goes down from there.
    """
    gaps = np.diff(positions, prepend=-1) - 1
    mean = int(gaps.sum()) // max(gaps.size, 1)

    def length(parameter: int) -> int:
        return gaps.size * (1 + parameter) + int((gaps >> parameter).sum())

    parameter = min(mean.bit_length(), MAX_PARAMETER)
    best = length(parameter)
    while parameter > 0 and (shorter := length(parameter - 1)) <= best:
        parameter, best = parameter - 1, shorter
    return parameter, best
