"""The loop that makes normal values of random bits, compiled by numba; a numpy reference in the tests defines it.

It has its own logarithm, sine and cosine (the polynomials of fdlibm, Sun 1993). Those of the C library are called value
by value and take twenty times as long as these, which LLVM turns into vector instructions. The largest difference
measured between the two is 9e-16.
"""

import math
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

_Function = TypeVar("_Function", bound=Callable[..., Any])

SUMMANDS: Final = 4
"""Normal values per generated value: n = 2 of Holohan and Braghin (2021), as in Opacus' secure mode."""

_FRACTION: Final = np.uint64(0x000FFFFFFFFFFFFF)
_ONE: Final = np.uint64(0x3FF0000000000000)  # the bits of 1.0; with a random fraction, a number in [1, 2)
_ROOT_HALF: Final = np.uint64(0x3FE6A09E667F3BCD)  # the bits of sqrt(1/2)
_TWO_52: Final = np.uint64(0x4330000000000000)  # the bits of 2.0**52; with an integer as fraction, their sum
_TWELVE: Final = np.uint64(12)
_FIFTY_TWO: Final = np.uint64(52)
_ZERO: Final = np.uint64(0)
_SWAP: Final = np.uint64(1)
_SIGN: Final = np.uint64(2)
_LN2_HIGH: Final = 6.93147180369123816490e-01
_LN2_LOW: Final = 1.90821492927058770002e-10
_QUARTER: Final = math.pi / 2


def _compile(function: _Function) -> _Function:
    """Compile at the first call, to run without the GIL; other processes load it from numba's cache."""
    # numpy's error model: a check for division by 0 would prevent vectorization.
    try:
        compiled = numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # numba has no writable cache folder, not even the user's: compile once per process then
        compiled = numba.njit(nogil=True, error_model="numpy")(function)
    return cast(_Function, compiled)


@_compile
def normal_values(words: npt.NDArray[np.uint64], std: float, out: npt.NDArray[Any]) -> None:
    """Fill `out` with normal values of mean 0.

    Each of the 4 m pairs of words is one pair of the Box-Muller transform: radius sqrt(-2 log u), with u in (0, 1] from
    the first word's upper 52 bits, and an angle from the second: its upper 52 bits give the angle within a quadrant,
    its lowest two choose the quadrant. A value is the sum of the cosine terms (of the sine terms, in the second half of
    `out`) of four pairs, times std / 2: float64 throughout, rounded once.

    Args:
        words: Independent random bits, (SUMMANDS, 2, m), uint64.
        std: Standard deviation of the values.
        out: Output, (2 m,), float32 or float64.
    """
    half = words.shape[2]
    across = np.zeros(half)
    along = np.zeros(half)
    bits = np.empty(half, np.uint64)
    mantissa_bits = np.empty(half, np.uint64)
    exponent_bits = np.empty(half, np.uint64)
    fraction = bits.view(np.float64)
    mantissa = mantissa_bits.view(np.float64)
    exponent = exponent_bits.view(np.float64)
    for pair in range(SUMMANDS):
        first = words[pair, 0]
        second = words[pair, 1]
        for i in range(half):
            bits[i] = (first[i] >> _TWELVE) | _ONE
        for i in range(half):
            fraction[i] = 2.0 - fraction[i]
        # log u = exponent * log 2 + log mantissa, with the mantissa from sqrt(1/2) to sqrt(2).
        for i in range(half):
            shifted = bits[i] + (_ONE - _ROOT_HALF)
            mantissa_bits[i] = (shifted & _FRACTION) + _ROOT_HALF
            exponent_bits[i] = (shifted >> _FIFTY_TWO) | _TWO_52
        for i in range(half):
            k = exponent[i] - (2.0**52 + 1023.0)
            x = mantissa[i] - 1.0
            s = x / (2.0 + x)
            z = s * s
            p = 1.531383769920937332e-01 + z * 1.479819860511658591e-01
            p = 2.222219843214978396e-01 + z * (1.818357216161805012e-01 + z * p)
            p = z * (6.666666666666735130e-01 + z * (3.999999999940941908e-01 + z * (2.857142874366239149e-01 + z * p)))
            h = 0.5 * x * x
            logarithm = k * _LN2_HIGH - ((h - (s * (h + p) + k * _LN2_LOW)) - x)
            mantissa[i] = math.sqrt(-2.0 * logarithm)
        for i in range(half):
            bits[i] = (second[i] >> _TWELVE) | _ONE
        for i in range(half):
            x = (fraction[i] - 1.5) * _QUARTER
            z = x * x
            p = 2.75573137070700676789e-06 + z * (-2.50507602534068634195e-08 + z * 1.58969099521155010221e-10)
            p = 8.33333333332248946124e-03 + z * (-1.98412698298579493134e-04 + z * p)
            sine = x + x * z * (-1.66666666666666324348e-01 + z * p)
            p = -2.75573143513906633035e-07 + z * (2.08757232129817482790e-09 + z * -1.13596475577881948265e-11)
            p = 4.16666666666666019037e-02 + z * (
                -1.38888888888741095749e-03 + z * (2.48015872894767294178e-05 + z * p)
            )
            cosine = 1.0 - 0.5 * z + z * z * p
            radius = -mantissa[i] if second[i] & _SIGN != _ZERO else mantissa[i]
            swap = second[i] & _SWAP != _ZERO
            across[i] += radius * (sine if swap else cosine)
            along[i] += radius * (cosine if swap else sine)
    for i in range(half):
        out[i] = across[i] * (0.5 * std)
        out[half + i] = along[i] * (0.5 * std)
