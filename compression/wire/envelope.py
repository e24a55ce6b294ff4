"""The envelope of every message, and a reader that trusts no length in it.

An envelope, little-endian, the same for an update (`magic` FU) and for a downlink message (`magic` FD):

    offset  bytes  what
    0       2      magic
    2       1      format version, 1
    3       1      kind: the codec's id, or the kind of downlink message
    4       1      flags, 0 (a reader refuses what it does not know)
    5       4      CRC-32 (zlib) of all the other bytes
    9       ...    body

The body of an update is `n`, the elements of the vector, as a varint, and the codec's payload. A varint is LEB128:
seven bits a byte, the lowest first, the top bit set on all but the last, in the shortest form, below 2**63.

The CRC detects accidental damage, not tampering: the signature around the message protects against that.
"""

import struct
import zlib
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.compression.errors import CodecError

Blob: TypeAlias = bytes | bytearray | memoryview

UPDATE = b"FU"
DOWNLINK = b"FD"
FORMAT = 1

_HEAD = struct.Struct("<2sBBB")
_CRC = struct.Struct("<I")
_BODY = _HEAD.size + _CRC.size
_VARINT_BYTES = 9


def wrap(magic: bytes, kind: int, *parts: Blob) -> bytes:
    """Wrap the concatenation of `parts` in an envelope."""
    head = _HEAD.pack(magic, FORMAT, kind, 0)
    crc = zlib.crc32(head)
    for part in parts:
        crc = zlib.crc32(part, crc)
    return b"".join((head, _CRC.pack(crc), *parts))


def read_kind(blob: Blob, magic: bytes) -> int:
    """Read the kind that an envelope claims, from its header alone.

    Raises:
        CodecError: The blob is too short, or has another magic, format or flag.
    """
    view = memoryview(blob).cast("B")
    if len(view) < _BODY:
        raise CodecError(f"a blob of {len(view)} bytes is too short; the header alone has {_BODY}")
    actual, version, kind, flags = _HEAD.unpack_from(view)
    if actual != magic:
        raise CodecError(f"the blob starts with {actual!r}, not {magic!r}")
    if version != FORMAT:
        raise CodecError(f"the blob has format version {version}; this end reads {FORMAT}")
    if flags:
        raise CodecError(f"the blob sets unknown flags {flags:#04x}")
    return int(kind)


def unwrap(blob: Blob, magic: bytes) -> tuple[int, "Reader"]:
    """Check an envelope; return its kind, and a reader at the start of its body.

    Raises:
        CodecError: As by `read_kind`, or the CRC differs.
    """
    kind = read_kind(blob, magic)
    view = memoryview(blob).cast("B")
    (crc,) = _CRC.unpack_from(view, _HEAD.size)
    if crc != zlib.crc32(view[_BODY:], zlib.crc32(view[: _HEAD.size])):
        raise CodecError("the blob's CRC-32 does not match: it was damaged on its way")
    return kind, Reader(view[_BODY:])


def wrap_update(codec_id: int, size: int, *parts: Blob) -> bytes:
    """Make the blob of an update of `size` elements from the codec's payload, `parts` end to end."""
    return wrap(UPDATE, codec_id, varint(size), *parts)


def unwrap_update(blob: Blob, size: int, codec_id: int) -> "Reader":
    """Return a reader at the payload of an update, which must have `size` elements and be coded by `codec_id`.

    Raises:
        CodecError: As by `unwrap`, or the update has another codec or size, or no elements.
    """
    kind, reader = unwrap(blob, UPDATE)
    if kind != codec_id:
        raise CodecError(f"the blob was coded by codec {kind}, not {codec_id}")
    if (elements := reader.varint()) != size:
        raise CodecError(f"the blob holds an update of {elements} elements, not {size}")
    if elements == 0:
        raise CodecError("the blob holds an update of no elements")
    return reader


def varint(number: int) -> bytes:
    """Return the LEB128 code of a number from 0 to 2**63 - 1.

    Raises:
        ValueError: The number is out of range.
    """
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{number} is no varint")
    coded = bytearray()
    while number > 0x7F:
        coded.append(number & 0x7F | 0x80)
        number >>= 7
    coded.append(number)
    return bytes(coded)


class Reader:
    """A cursor over untrusted bytes, which checks that bytes are there before memory is allocated for them.

    Each method raises `CodecError` where the bytes end early or are malformed.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    @property
    def remaining(self) -> int:
        """Number of bytes not yet read."""
        return len(self._view) - self._at

    def take(self, count: int) -> memoryview:
        """Read the next `count` bytes, without a copy."""
        if count > self.remaining:
            raise CodecError(f"the blob ends early: {count} bytes wanted, {self.remaining} left")
        start = self._at
        self._at += count
        return self._view[start : self._at]

    def array(self, dtype: str, count: int) -> npt.NDArray[Any]:
        """Read the next `count` elements of a little-endian `dtype` such as `<f4`; read-only, without a copy."""
        return np.frombuffer(self.take(count * np.dtype(dtype).itemsize), dtype=dtype)

    def varint(self) -> int:
        """Read the next varint."""
        number = 0
        for index in range(_VARINT_BYTES):
            (byte,) = self.take(1)
            number |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                if byte == 0 and index:
                    raise CodecError("the blob holds a varint that is not in its shortest form")
                return number
        raise CodecError("the blob holds a varint that does not end")

    def finish(self) -> None:
        """Check that no bytes are left."""
        if self.remaining:
            raise CodecError(f"the blob has {self.remaining} bytes after its end")
