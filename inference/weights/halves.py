"""Entropy code of float16 arrays: scales, norms, biases.

Sign and exponent are a symbol, the three upper bits of the mantissa a symbol under it, and each of the other seven has
an adaptive probability of its own: so low bits that a quantizer has rounded away cost nothing (`round_mantissa`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.weights.adaptive_bits import AdaptiveBits, AdaptiveTrees, split_into_steps
from fedglm.inference.weights.rans import Coder

_MANTISSA: Final = 10
_UPPER: Final = 3
_LOWER: Final = _MANTISSA - _UPPER

Halves = npt.NDArray[np.float16]


def round_mantissa(values: npt.NDArray[np.float32], bits: int) -> npt.NDArray[np.float32]:
    """Round to float16, then to so many bits of mantissa, each to nearest, ties to even.

    Args:
        values: Values of any shape, float32.
        bits: Bits of mantissa after the leading one, 0 to 10: the float16 changes by at most 2**-(bits + 1) of it.

    Returns:
        The rounded values, float32; infinite where a float16 would be.
    """
    with np.errstate(over="ignore"):
        raw = values.astype(np.float16).view(np.uint16).astype(np.uint32)
    drop = _MANTISSA - bits
    if drop:
        # Half of the last bit that is kept, less one unit if that bit is 0, carries into it where it must.
        keep, even = np.uint32(-(1 << drop) & 0xFFFF), raw >> np.uint32(drop) & np.uint32(1)
        raw = raw + np.uint32((1 << (drop - 1)) - 1) + even & keep
    return raw.astype(np.uint16).view(np.float16).astype(np.float32)


def walk_halves(coder: Coder, halves: Halves | None, count: int) -> Halves:
    """Code `count` numbers, (count,), float16, by one model; a decoder ignores `halves`."""
    coded, source = np.empty(count, np.uint16), None if halves is None else halves.view(np.uint16)
    heads, uppers, lower = AdaptiveTrees(1, 6), AdaptiveTrees(64, _UPPER), AdaptiveBits(_LOWER)
    for step in split_into_steps(count, coder.lanes):
        given = None if source is None else source[step].astype(np.int64)
        first = np.zeros(step.stop - step.start, np.int64)
        head = heads.code(coder, None if given is None else given >> _MANTISSA, first)
        upper = uppers.code(coder, None if given is None else given >> _LOWER & 7, head)
        value = head << _UPPER | upper
        for place in reversed(range(_LOWER)):
            bits = None if given is None else (given >> place & 1).astype(np.bool_)
            value = value << 1 | lower.code(coder, bits, np.full(head.size, place))
        coded[step] = value
    return coded.view(np.float16)


def subtract_previous(halves: Halves, previous: Halves) -> Halves:
    """Return the differences to the numbers of an earlier release, as numbers that `walk_halves` codes shortly.

    The bits of a float16 count its values in order, so a small change is a small difference of bits; it is written as
    2 d or -2 d - 1, modulo 2**16, so that small ones of both signs have zeros above.
    """
    change = (halves.view(np.uint16) - previous.view(np.uint16)).view(np.int16)
    return (change << 1 ^ change >> 15).view(np.float16)


def add_previous(differences: Halves, previous: Halves) -> Halves:
    """Return the numbers whose `subtract_previous` these differences are."""
    folded = differences.view(np.uint16)
    return (previous.view(np.uint16) + (folded >> 1 ^ -(folded & 1))).view(np.float16)
