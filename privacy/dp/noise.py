"""Cryptographic randomness: Gaussian noise, Poisson samples and choices from the operating system's CSPRNG.

Each call takes 32 fresh bytes of the operating system as the key of a ChaCha20 stream (RFC 8439) of its own. So nothing
is kept between calls: there is no state to fork, to clone or to pickle, and no seed of an experiment affects it.
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
"""Number of normal values that are generated at once: their random bits fit into the processor's cache."""
_GRID_BITS: Final = 40
"""Number of binary digits from the standard deviation down to the grid of `GaussianNoise.add`."""


class GaussianNoise:
    """Draws noise and other values that must be secret and unpredictable.

    Args:
        entropy: Source of random bytes, called with their number; only tests replace the operating system's.
    """

    def __init__(self, entropy: Callable[[int], bytes] = os.urandom) -> None:
        self._entropy = entropy

    def normal(self, std: float, size: int) -> npt.NDArray[np.float32]:
        """Draw `size` independent normal values of mean 0 and standard deviation `std`, float32.

        Adding them directly to private numbers would not protect these: see `add`.

        Raises:
            PrivacyError: `std` is not from 1e-30 to 1e30, the range for float32 values; or `size` is negative.
        """
        return self._fill_normal(std, np.empty(_check_size(size), np.float32))

    def add(self, values: npt.NDArray[np.floating], std: float) -> npt.NDArray[np.float64]:
        """Add independent noise of standard deviation `std` to each private number.

        Both are rounded to one grid, of spacing 2**-40 to 2**-39 of `std`, before they are added, and on the grid the
        sum is exact. The spacing of floats depends on their size: the low bits of a plain sum reveal which private
        numbers can have produced it with some noise (Mironov 2012). On the grid the noise is the same whatever it is
        added to.

        Args:
            values: The private numbers, (n,), finite. Rounding changes each by less than 2**-40 of `std`.
            std: Standard deviation of the noise.

        Returns:
            The noised numbers, (n,), float64, which may leave the site.

        Raises:
            PrivacyError: `std` is not from 1e-30 to 1e30.
        """
        noise = self._fill_normal(std, np.empty(len(values), np.float64))
        grid = 2.0 ** (math.frexp(std)[1] - _GRID_BITS)
        out: npt.NDArray[np.float64] = np.rint(np.divide(noise, grid, out=noise), out=noise)
        out += np.rint(np.asarray(values, np.float64) / grid)
        out *= grid
        return out

    def _fill_normal(self, std: float, out: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Fill `out`, (n,), float32 or float64, with normal values."""
        if not 1e-30 <= std <= 1e30:
            raise PrivacyError(f"the noise's standard deviation is a number from 1e-30 to 1e30, not {std!r}")
        size = len(out)
        words = self._generate_words(SUMMANDS * _CHUNK)
        chunk = np.empty(_CHUNK, out.dtype)
        for start in range(0, size, _CHUNK):
            normal_values(next(words).reshape(SUMMANDS, 2, _CHUNK // 2), float(std), chunk)
            out[start : start + _CHUNK] = chunk[: size - start]
        return out

    def uniform(self, size: int) -> npt.NDArray[np.float64]:
        """Draw `size` independent uniform values in [0, 1), multiples of 2**-53, float64.

        Raises:
            PrivacyError: `size` is negative.
        """
        words = next(self._generate_words(_check_size(size)))
        return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53

    def choice(self, items: int, count: int) -> npt.NDArray[np.int64]:
        """Choose `count` different numbers below `items`, all sets equally likely; ascending, int64.

        Raises:
            PrivacyError: `count` is negative or above `items`.
        """
        if not 0 <= count <= items:
            raise PrivacyError(f"cannot choose {count} of {items}")
        # The items with the smallest random 64-bit keys; two equal keys are practically impossible.
        keys = next(self._generate_words(items))
        return np.sort(np.argsort(keys, kind="stable")[:count]).astype(np.int64)

    def _generate_words(self, count: int) -> Iterator[npt.NDArray[np.uint64]]:
        """Generate blocks of one new key stream, (count,), uint64; each overwrites the one before."""
        key = self._entropy(_KEY_BYTES)
        if len(key) != _KEY_BYTES:
            raise PrivacyError(f"the source of entropy gave {len(key)} bytes, {_KEY_BYTES} were asked for")
        cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
        zeros = bytes(8 * count)
        stream = np.empty(count, np.uint64)
        while True:
            cipher.update_into(zeros, stream.data.cast("B"))
            yield stream


def _check_size(size: int) -> int:
    if size < 0:
        raise PrivacyError(f"cannot draw {size} values")
    return size
