"""Hazards, their survival probabilities, and the rate of a Poisson process, in integers.

A hazard of h bits is survived with probability 2**-h. Linearly interpolated tables give that and its inverse; they are
computed from integer roots and squares, so that they are the same on every machine.
"""

from math import isqrt
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.compression.kernels.compiled import kernel

SYMBOL: Final = 32
ALL: Final = 1 << SYMBOL
BIT: Final = 28  # hazards are in units of 2**-28 bits
_LOG2_E: Final = 94548  # in units of 2**-16
RATE: Final = 38  # rates are in units of 2**-38 bits per unit of weight
_MIN_RATE: Final = 1 << 10  # 2**-22 bits for the lightest column: after 8 bits still more than a unit of a symbol
_MAX_RATE: Final = 1 << 32


def _compute_tables() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Compute 2**(40 - i/1024) and 2**28 log2(1 + i/1024), i from 0 to 1024, rounded down; equal on every machine."""
    scale = 128
    one = 1 << scale
    root = 2 * one
    for _ in range(10):
        root = isqrt(root << scale)
    powers = [one << 40]
    for _ in range(1024):
        powers.append((powers[-1] << scale) // root)
    logarithms = []
    for step in range(1025):
        value, log = one + (one * step >> 10), 0
        for _ in range(BIT):  # a bit of the logarithm for each squaring
            value = value * value >> scale
            log = log << 1 | value >> (scale + 1)
            value >>= value >> (scale + 1)
        logarithms.append(log if step < 1024 else 1 << BIT)
    return np.array([power >> scale for power in powers], np.int64), np.array(logarithms, np.int64)


_POWERS, _LOGARITHMS = _compute_tables()


@kernel
def survival(hazard: int) -> int:
    """Return 2**(32 - hazard) for a hazard up to 8 bits; it strictly decreases with each column, however light."""
    fraction = hazard & ((1 << BIT) - 1)
    at = fraction >> 18
    upper: int = _POWERS[at]
    between: int = ((upper - _POWERS[at + 1]) * (fraction & ((1 << 18) - 1))) >> 18
    return (upper - between) >> (8 + (hazard >> BIT))


@kernel
def estimate_hazard(survival: int) -> int:
    """Return about the hazard of a survival, from which a decoder starts its search."""
    survival = min(survival, ALL - 1)
    whole_bits = 0
    while survival < ALL >> 1:
        survival <<= 1
        whole_bits += 1
    fraction = (survival << 8) - (1 << 39)  # of 2**39
    at = fraction >> 29
    lower: int = _LOGARITHMS[at]
    log: int = lower + (((_LOGARITHMS[at + 1] - lower) * ((fraction >> 9) & ((1 << 20) - 1))) >> 20)
    return ((whole_bits + 1) << BIT) - log


@kernel
def estimate_rate(hits: int, exposure: int) -> int:
    """Return the hazard per unit of weight after `hits` (in units of 2**-8, at most 2**21) in `exposure` of weight."""
    return max(_MIN_RATE, min(_MAX_RATE, ((hits * _LOG2_E) << (RATE - 24)) // max(1, exposure)))
