"""Entropy code of float16 arrays: scales, norms, biases.

Sign and exponent are a symbol, the three upper bits of the mantissa a symbol under it, and each of the other seven has
an adaptive probability of its own: so low bits that a quantizer has rounded away cost nothing (`round_mantissa`).
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.weights.adaptive_bits import AdaptiveBits, AdaptiveTrees, Contexts, split_into_steps
from fedglm.inference.weights.known_bits import code_known_symbols, expand_tree
from fedglm.inference.weights.rans import Bits, Coder

_MANTISSA: Final = 10
_UPPER: Final = 3
_LOWER: Final = _MANTISSA - _UPPER
_HEAD: Final = 6
_CONTEXTS: Final = (1 << _HEAD) + (1 << _HEAD + _UPPER) + _LOWER

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
    if halves is not None:
        given = halves.view(np.uint16)
        code_known_symbols(
            coder, count, lambda some: _expand(given[some].astype(np.int64)), bits=16, contexts=_CONTEXTS
        )
        return halves
    coded = np.empty(count, np.uint16)
    heads, uppers, lower = AdaptiveTrees(1, _HEAD), AdaptiveTrees(1 << _HEAD, _UPPER), AdaptiveBits(_LOWER)
    for step in split_into_steps(count, coder.lanes):
        head = heads.code(coder, None, np.zeros(step.stop - step.start, np.int64))
        value = head << _UPPER | uppers.code(coder, None, head)
        for place in reversed(range(_LOWER)):
            value = value << 1 | lower.code(coder, None, np.full(head.size, place))
        coded[step] = value
    return coded.view(np.float16)


def _expand(raw: Contexts) -> tuple[Bits, Contexts]:
    """Return the bits of numbers, (n, 16), in the order of coding, and their contexts: those of the three models."""
    heads, uppers = expand_tree(raw >> _MANTISSA, 0, _HEAD), expand_tree(raw >> _LOWER & 7, raw >> _MANTISSA, _UPPER)
    places = np.arange(_LOWER)[::-1]
    lower = (raw[:, None] >> places & 1).astype(np.bool_)
    contexts = uppers[1] + (1 << _HEAD), np.tile(places + _CONTEXTS - _LOWER, (raw.size, 1))
    return np.hstack([heads[0], uppers[0], lower]), np.hstack([heads[1], *contexts])


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
