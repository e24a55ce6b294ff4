"""Codecs that send every element: the reference, half of it, and a quarter of it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedglm.compression import blocks, halves
from fedglm.compression.errors import CodecError
from fedglm.compression.updates import DenseUpdate
from fedglm.compression.vectors import Vector, checked
from fedglm.compression.wire import Blob, seal_update, unseal_update


@dataclass(frozen=True)
class DenseFp32:
    """The vector itself, 32 bits an element. Payload: n float32."""

    name: ClassVar[str] = "dense-fp32"
    wire_id: ClassVar[int] = 1

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = checked(update, "the update")
        return seal_update(self.wire_id, vector.size, vector.astype("<f4", copy=False).data)

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode what `encode` wrote; NaN and infinity are refused."""
        reader = unseal_update(blob, size, cls.wire_id)
        values = reader.array("<f4", size).astype(np.float32)
        reader.finish()
        if not np.isfinite(values).all():
            raise CodecError("the update holds NaN or infinity")
        return DenseUpdate(values)


@dataclass(frozen=True)
class DenseFp16:
    """Float16 with a power-of-two scale a block, 16.01 bits an element. Payload: as in `halves`."""

    name: ClassVar[str] = "dense-fp16"
    wire_id: ClassVar[int] = 2

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = checked(update, "the update")
        return seal_update(self.wire_id, vector.size, halves.pack(vector))

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode what `encode` wrote, without rounding."""
        reader = unseal_update(blob, size, cls.wire_id)
        values = halves.unpack(reader, size)
        reader.finish()
        return DenseUpdate(values)


@dataclass(frozen=True)
class Int8:
    """Whole numbers from -127 to 127 with one scale a block, 8.03 bits an element.

    Payload: ceil(n / 1024) float32 scales, each 0 or from 2**-126 to 2**121, and n int8. A value is `int8 * scale`, one
    IEEE multiplication that neither overflows nor gives a subnormal, so it has the same bits everywhere. The scale is
    the block's largest magnitude / 127; the error is at most half of it.
    """

    name: ClassVar[str] = "int8"
    wire_id: ClassVar[int] = 3

    _LEVELS: ClassVar[int] = 127
    _SMALLEST: ClassVar[np.float32] = np.finfo(np.float32).tiny
    _LARGEST: ClassVar[np.float32] = np.float32(2.0**121)

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = checked(update, "the update")
        scales = np.empty(blocks.count(vector.size), "<f4")
        levels = np.empty(vector.size, np.int8)
        for elements, its_blocks in blocks.parts(vector.size):
            scale = np.minimum(blocks.peaks(vector[elements]) / np.float32(self._LEVELS), self._LARGEST)
            scale[scale < self._SMALLEST] = 0
            divisors = np.where(scale > 0, scale, np.float32(np.inf))
            level = np.rint(vector[elements] / blocks.spread(divisors, vector[elements].size))
            scales[its_blocks] = scale
            levels[elements] = np.clip(level, -self._LEVELS, self._LEVELS)
        return seal_update(self.wire_id, vector.size, scales.data, levels.data)

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode what `encode` wrote."""
        reader = unseal_update(blob, size, cls.wire_id)
        scales = reader.array("<f4", blocks.count(size)).astype(np.float32)
        levels = reader.array("<i1", size)
        reader.finish()
        if not ((scales == 0) | ((scales >= cls._SMALLEST) & (scales <= cls._LARGEST))).all():
            raise CodecError("a block's scale is out of range")
        if levels.min() < -cls._LEVELS:
            raise CodecError("an int8 value of -128")
        values = np.empty(size, np.float32)
        for elements, its_blocks in blocks.parts(size):
            np.multiply(
                levels[elements], blocks.spread(scales[its_blocks], levels[elements].size), out=values[elements]
            )
        return DenseUpdate(values)
