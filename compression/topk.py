"""Codecs that send the largest magnitudes only; what they leave out is the error feedback's to keep.

Payload of both: k as a varint, the k values, and the k positions (`golomb_rice`), which take the rest of the blob.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedglm.compression import golomb_rice, halves
from fedglm.compression.errors import CodecError
from fedglm.compression.selection import kept, largest
from fedglm.compression.updates import SparseUpdate
from fedglm.compression.vectors import Vector, checked
from fedglm.compression.wire import Blob, Reader, seal_update, unseal_update, varint

DENSITY = 0.01
"""Of the elements, what a sparse codec sends when nothing else is asked for."""


@dataclass(frozen=True, kw_only=True)
class _TopK:
    """The `round(density * n)` largest magnitudes, at least one; of equal ones those with the lower index; no zeros.

    Attributes:
        density: share of the elements that is sent, above 0 and at most 1.
    """

    density: float = DENSITY

    def __post_init__(self) -> None:
        if isinstance(self.density, bool) or not isinstance(self.density, int | float) or not 0 < self.density <= 1:
            raise CodecError(f"density is a number above 0 and at most 1, not {self.density!r}")


@dataclass(frozen=True, kw_only=True)
class TopKFp16(_TopK):
    """Values in float16 with a power-of-two scale for each 1024 of them. Values: as in `halves`."""

    name: ClassVar[str] = "topk-fp16"
    wire_id: ClassVar[int] = 4

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = checked(update, "the update")
        positions = largest(vector, kept(self.density, vector.size))
        return seal_update(
            self.wire_id,
            vector.size,
            varint(positions.size),
            halves.pack(vector[positions]),
            golomb_rice.pack(positions),
        )

    @classmethod
    def decode(cls, blob: Blob, size: int) -> SparseUpdate:
        """Decode what `encode` wrote, without rounding."""
        reader = unseal_update(blob, size, cls.wire_id)
        count = _count(reader, size)
        values = halves.unpack(reader, count)
        return SparseUpdate(size, golomb_rice.unpack(reader, count, size), values)


@dataclass(frozen=True, kw_only=True)
class TopKSign(_TopK):
    """A bit a value and one magnitude for all: what top-k sends lies within a factor of 1.2 under error feedback.

    Values: the magnitude (the mean of those sent) as float32, 0 or at least 2**-126; then a bit a value, 1 for a
    negative one, from the lowest bit of each byte, the last byte filled with zeros.
    """

    name: ClassVar[str] = "topk-sign"
    wire_id: ClassVar[int] = 5

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = checked(update, "the update")
        positions = largest(vector, kept(self.density, vector.size))
        values = vector[positions]
        scale = np.float32(np.abs(values).mean(dtype=np.float64) if values.size else 0)
        if scale < np.finfo(np.float32).tiny:
            scale = np.float32(0)
        return seal_update(
            self.wire_id,
            vector.size,
            varint(positions.size),
            scale.astype("<f4").tobytes(),
            np.packbits(values < 0, bitorder="little").tobytes(),
            golomb_rice.pack(positions),
        )

    @classmethod
    def decode(cls, blob: Blob, size: int) -> SparseUpdate:
        """Decode what `encode` wrote, without rounding."""
        reader = unseal_update(blob, size, cls.wire_id)
        count = _count(reader, size)
        scale = reader.array("<f4", 1).astype(np.float32)[0]
        bits = reader.array("<u1", -(-count // 8))
        if not (scale == 0 or np.finfo(np.float32).tiny <= scale < np.inf):
            raise CodecError(f"a magnitude of {scale}")
        if count % 8 and bits[-1] >> count % 8:
            raise CodecError("the signs have bits after their end")
        positions = golomb_rice.unpack(reader, count, size)
        negative = np.unpackbits(bits, count=count, bitorder="little").view(np.bool_)
        return SparseUpdate(size, positions, np.where(negative, -scale, scale))


def _count(reader: Reader, size: int) -> int:
    """The number of values, before any memory is taken for them."""
    if (count := reader.varint()) > size:
        raise CodecError(f"{count} values in a vector of {size}")
    return count
