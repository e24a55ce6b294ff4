"""Codes at a fixed width: so many bits each, five ternary digits a byte, or five bits for four of a 3:4 sparse row.

Digits are unsigned: 0 to ``levels - 1``. Bits are laid out from the most significant one, as ``numpy.packbits`` does;
what is left of the last byte is zero, and checked to be.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError

Digits = npt.NDArray[np.uint8]

_BLOCK: Final = 1 << 16  # digits at a time: eight bytes each while their bits are apart
_TRITS: Final = 5
_TRIT_TABLE: Final = (np.arange(3**_TRITS)[:, None] // 3 ** np.arange(_TRITS) % 3).astype(np.uint8)
"""The five ternary digits of each byte, least first: (243, 5)."""


def bits_size(count: int, width: int) -> int:
    """Return the number of bytes of `count` digits of `width` bits."""
    return -(-count * width // 8)


def pack_bits(digits: Digits, width: int) -> bytes:
    """Pack digits of 1 to 8 bits, most significant bit first."""
    blocks = [digits[at : at + _BLOCK] for at in range(0, digits.size, _BLOCK)]
    return b"".join(np.packbits(np.unpackbits(block[:, None], axis=1)[:, 8 - width :]).tobytes() for block in blocks)


def unpack_bits(blob: bytes, count: int, width: int) -> Digits:
    """Return the digits of `pack_bits`, (count,), uint8.

    Raises:
        InferenceError: The length is another, or the bits after the last digit are not zero.
    """
    _check_length(blob, bits_size(count, width))
    raw = np.frombuffer(blob, np.uint8)
    if width and 8 % width == 0:  # a byte is whole digits: no bits need be apart
        shifts = np.arange(8 - width, -1, -width, dtype=np.uint8)
        whole: Digits = (raw[:, None] >> shifts & np.uint8((1 << width) - 1)).reshape(-1)
        _check_padding(whole[count:])
        return whole[:count]
    digits = np.empty(count, np.uint8)
    for at in range(0, count, _BLOCK):  # a multiple of eight digits fills whole bytes
        size = min(_BLOCK, count - at)
        start = at * width // 8
        bits = np.unpackbits(raw[start : start + bits_size(size, width)])
        _check_padding(bits[size * width :])
        wide = np.zeros((size, 8), np.uint8)
        wide[:, 8 - width :] = bits[: size * width].reshape(size, width)
        digits[at : at + size] = np.packbits(wide)
    return digits


def trits_size(count: int) -> int:
    """Return the number of bytes of `count` ternary digits: 1.6 bits each."""
    return -(-count // _TRITS)


def pack_trits(digits: Digits) -> bytes:
    """Pack ternary digits, five a byte, the first least significant."""
    padded = np.zeros(trits_size(digits.size) * _TRITS, np.uint8)
    padded[: digits.size] = digits
    groups = padded.reshape(-1, _TRITS)
    packed = np.zeros(len(groups), np.uint8)
    for place in reversed(range(_TRITS)):
        packed = packed * np.uint8(3) + groups[:, place]
    return packed.tobytes()


def unpack_trits(blob: bytes, count: int) -> Digits:
    """Return the digits of `pack_trits`, (count,), uint8.

    Raises:
        InferenceError: The length is another, or a byte is no five digits.
    """
    _check_length(blob, trits_size(count))
    packed = np.frombuffer(blob, np.uint8)
    if packed.size and packed.max() >= len(_TRIT_TABLE):
        raise InferenceError(f"packed ternary digits hold a byte {packed.max()}, which is no five of them")
    digits = _TRIT_TABLE[packed].reshape(-1)
    _check_padding(digits[count:])
    return digits[:count]


def is_sparse34(digits: Digits) -> bool:
    """Return whether each four ternary digits in a row hold exactly one 1 (a zero of -1, 0, 1)."""
    return digits.size % 4 == 0 and bool(((digits.reshape(-1, 4) == 1).sum(axis=1) == 1).all())


def sparse34_size(count: int) -> int:
    """Return the number of bytes of `count` 3:4 sparse ternary digits: 1.25 bits each."""
    return bits_size(-(-count // 4), 5)


def pack_sparse34(digits: Digits) -> bytes:
    """Pack ternary digits of which one of four is 1: its place in two bits, then three signs ("Sherry", ACL 2026)."""
    groups = digits.reshape(-1, 4)
    zero = (groups == 1).argmax(axis=1).astype(np.uint8)
    signs = groups[groups != 1].reshape(-1, 3) >> 1
    return pack_bits(zero << 3 | signs[:, 0] << 2 | signs[:, 1] << 1 | signs[:, 2], 5)


def unpack_sparse34(blob: bytes, count: int) -> Digits:
    """Return the digits of `pack_sparse34`, (count,), uint8.

    Raises:
        InferenceError: `count` is no multiple of four, the length is another, or the last bits are not zero.
    """
    if count % 4:
        raise InferenceError(f"{count} digits are no groups of four")
    packed = unpack_bits(blob, count // 4, 5)
    groups = np.ones((count // 4, 4), np.uint8)
    others = np.arange(4) != (packed >> 3)[:, None]
    groups[others] = ((packed[:, None] >> np.array([2, 1, 0], np.uint8) & 1) << 1).reshape(-1)
    return groups.reshape(-1)


def _check_length(blob: bytes, size: int) -> None:
    if len(blob) != size:
        raise InferenceError(f"packed codes have {len(blob)} bytes, and should have {size}")


def _check_padding(padding: Digits) -> None:
    if padding.any():
        raise InferenceError("packed codes go on after their end")
