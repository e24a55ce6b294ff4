"""Randomness that protects: Gaussian noise, Poisson samples and choices from the operating system's CSPRNG.

Each call takes 32 fresh bytes of the operating system as the key of a ChaCha20 stream (RFC 8439) of its own. So nothing
is kept between calls: there is no state to fork, to clone or to pickle, and no seed of an experiment reaches it.
"""

import math
import os
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedglm.privacy.dp.noise_kernels import SUMMANDS, normal_values
from fedglm.privacy.errors import PrivacyError

_KEY_BYTES: Final = 32
_CHUNK: Final = 2048
"""Normal values made at a time: their random bits stay in the processor's cache."""
_GRID_BITS: Final = 40


class GaussianNoise:
    """Draws noise and what else must be secret and unpredictable.

    Args:
        entropy: Gives that many bytes; only tests put anything else in place of the operating system's.
    """

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._entropy = entropy

    def fill(self, std: float, size: int) -> npt.NDArray[np.float32]:
        """`size` independent normal values of mean 0 and standard deviation `std`, float32.

        To add them to private numbers as they are would not protect: see `add`.

        Raises:
            PrivacyError: `std` is not from 1e-30 to 1e30, where float32 holds the values; or `size` is negative.
        """
        return self._normal(std, np.empty(_checked(size), np.float32))

    def add(self, values: npt.NDArray[np.floating], std: float) -> npt.NDArray[np.float64]:
        """Private numbers with independent noise of standard deviation `std` on each, float64, which may leave.

        Both are rounded to one grid, 2**-40 to 2**-39 of `std`, before they are added, and there the sum is exact. The
        values of a float are spaced by their size: of a plain sum, the low bits tell which numbers some noise can have
        made it of, and with them the private ones (Mironov 2012). On the grid the noise is the same whatever it is
        added to.

        Args:
            values: (n,) the private numbers, finite. Rounding moves each by less than 2**-40 of `std`.
            std: Of the noise.

        Raises:
            PrivacyError: `std` is not from 1e-30 to 1e30.
        """
        noise = self._normal(std, np.empty(len(values), np.float64))
        grid = 2.0 ** (math.frexp(std)[1] - _GRID_BITS)
        out: npt.NDArray[np.float64] = np.rint(np.divide(noise, grid, out=noise), out=noise)
        out += np.rint(np.asarray(values, np.float64) / grid)
        out *= grid
        return out

    def _normal(self, std: float, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Fill `out` (n,), float32 or float64."""
        if not 1e-30 <= std <= 1e30:
            raise PrivacyError(f"the noise's standard deviation is a number from 1e-30 to 1e30, not {std!r}")
        size = len(out)
        words = self._words(SUMMANDS * _CHUNK)
        piece = np.empty(_CHUNK, out.dtype)
        for start in range(0, size, _CHUNK):
            normal_values(next(words).reshape(SUMMANDS, 2, _CHUNK // 2), float(std), piece)
            out[start : start + _CHUNK] = piece[: size - start]
        return out

    def uniform(self, size: int) -> npt.NDArray[np.float64]:
        """`size` independent uniform values in [0, 1), multiples of 2**-53, float64.

        Raises:
            PrivacyError: `size` is negative.
        """
        words = next(self._words(_checked(size)))
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def choice(self, items: int, count: int) -> npt.NDArray[np.int64]:
        """`count` different numbers below `items`, each set of them equally likely, ascending, int64.

        Raises:
            PrivacyError: There are not that many.
        """
        if not 0 <= count <= items:
            raise PrivacyError(f"cannot choose {count} of {items}")
        # The items with the smallest of 64-bit tickets; two equal ones are not to be expected in a lifetime.
        tickets = next(self._words(items))
        return np.sort(np.argsort(tickets, kind="stable")[:count]).astype(np.int64)

    def _words(self, count: int) -> Iterator[npt.NDArray[np.uint64]]:
        """Pieces of one new key stream, `count` words each; a piece is overwritten by the next."""
        key = self._entropy(_KEY_BYTES)
        if len(key) != _KEY_BYTES:
            raise PrivacyError(f"the source of entropy gave {len(key)} bytes, {_KEY_BYTES} were asked for")
        cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        zeros = bytes(8 * count)
        stream = np.empty(count, np.uint64)
        while True:
            cipher.update_into(zeros, stream.data.cast("B"))
            yield stream


def _checked(size: int) -> int:
    if size < 0:
        raise PrivacyError(f"cannot draw {size} values")
    return size
