"""Codecs that send every element: float32 as the reference, float16 at half and int8 at a quarter of its size."""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from fedglm.compression.codecs.options import CodecOptions
from fedglm.compression.errors import CodecError
from fedglm.compression.layout import Layout
from fedglm.compression.updates import DenseUpdate
from fedglm.compression.values import fp16_blocks, int8_blocks
from fedglm.compression.vectors import Vector, check_vector
from fedglm.compression.wire.envelope import Blob, unwrap_update, wrap_update


@dataclass(frozen=True)
class _Dense:
    """Base of the dense codecs, which have no options and use no layout."""

    options_type: ClassVar[type[CodecOptions]] = CodecOptions

    options: CodecOptions
    layout: Layout | None = field(default=None, compare=False)


@dataclass(frozen=True)
class DenseFp32(_Dense):
    """The vector itself, 32 bits an element. Payload: n float32."""

    name: ClassVar[str] = "dense-fp32"
    wire_id: ClassVar[int] = 1

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = check_vector(update, "the update")
        return wrap_update(self.wire_id, vector.size, vector.astype("<f4", copy=False).data)

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode what `encode` wrote; NaN and infinity are refused."""
        reader = unwrap_update(blob, size, cls.wire_id)
        values = reader.array("<f4", size).astype(np.float32)
        reader.finish()
        if not np.isfinite(values).all():
            raise CodecError("the update holds NaN or infinity")
        return DenseUpdate(values)


@dataclass(frozen=True)
class DenseFp16(_Dense):
    """Float16 with a power-of-two scale per block, 16.01 bits an element. Payload: as in `fp16_blocks`."""

    name: ClassVar[str] = "dense-fp16"
    wire_id: ClassVar[int] = 2

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = check_vector(update, "the update")
        return wrap_update(self.wire_id, vector.size, fp16_blocks.pack(vector))

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode what `encode` wrote, without rounding."""
        reader = unwrap_update(blob, size, cls.wire_id)
        values = fp16_blocks.unpack(reader, size)
        reader.finish()
        return DenseUpdate(values)


@dataclass(frozen=True)
class Int8(_Dense):
    """Integers from -127 to 127 with one scale per block, 8.03 bits an element.

    Payload: as in `int8_blocks`.
    """

    name: ClassVar[str] = "int8"
    wire_id: ClassVar[int] = 3

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = check_vector(update, "the update")
        return wrap_update(self.wire_id, vector.size, int8_blocks.pack(vector))

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode what `encode` wrote."""
        reader = unwrap_update(blob, size, cls.wire_id)
        values = int8_blocks.unpack(reader, size)
        reader.finish()
        return DenseUpdate(values)
