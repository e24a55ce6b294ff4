"""Flags of one bit each: a byte is filled from its lowest bit, and the last byte is padded with zeros."""

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.vectors import Flags
from fedglm.compression.wire.envelope import Reader


def pack(flags: Flags) -> bytes:
    """Code `flags`, bool of shape (m,), in ceil(m / 8) bytes."""
    return np.packbits(flags, bitorder="little").tobytes()


def unpack(reader: Reader, count: int) -> Flags:
    """Decode `count` flags to bool of shape (count,).

    Raises:
        CodecError: There are too few bytes, or bits are set after the end.
    """
    code = reader.array("<u1", -(-count // 8))
    if count % 8 and code[-1] >> count % 8:
        raise CodecError("the blob has bits after their end")
    return np.unpackbits(code, count=count, bitorder="little").view(np.bool_)
