"""Codecs that send the largest magnitudes only; error feedback keeps what they leave out.

Payload of all: k as a varint, the k values, and the k positions, which take the rest of the blob. They differ in the
code of the values; where those are magnitudes, the signs come with the positions (`positions.signed`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from fedglm.compression.codecs.budget import fill
from fedglm.compression.codecs.options import CodecOptions, Overshoot, SparseOptions
from fedglm.compression.codecs.selection import Largest, count_kept, select_largest, select_largest_compensated
from fedglm.compression.errors import CodecError
from fedglm.compression.kernels.scatter import add_at
from fedglm.compression.layout import Layout
from fedglm.compression.positions import coding
from fedglm.compression.positions import signed as signed_positions
from fedglm.compression.positions.signed import apply_signs
from fedglm.compression.updates import SparseUpdate
from fedglm.compression.values import fp16_blocks, int8_blocks, magnitudes
from fedglm.compression.vectors import Vector
from fedglm.compression.wire.envelope import Blob, Reader, unwrap_update, varint, wrap_update


class ValueCode(NamedTuple):
    """A code of the values.

    Attributes:
        pack: Encodes the values.
        unpack: Decodes so many values from a reader, or their magnitudes.
        signed: Whether the code holds magnitudes, and the signs come with the positions.
    """

    pack: Callable[[Vector], bytes]
    unpack: Callable[[Reader, int], Vector]
    signed: bool = False


@dataclass(frozen=True)
class _TopK:
    """The `round(density * n)` largest magnitudes, at least one; of equal ones those with the lower index; no zeros.

    Attributes:
        options: See `SparseOptions`.
        layout: Tensors behind the vector, whose rows and columns make the code of the positions shorter.
    """

    name: ClassVar[str]
    wire_id: ClassVar[int]
    options_type: ClassVar[type[CodecOptions]] = SparseOptions
    _values: ClassVar[ValueCode]

    options: SparseOptions
    layout: Layout | None = None

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        if self.options.max_bytes is not None:
            return self._fill(update, self.options.max_bytes)
        chosen = select_largest(update, count_kept(self.options.density, np.size(update)))
        return self._wrap(update.size, chosen, self._pack(chosen.values))

    def encode_compensated(self, delta: Vector, residual: Vector, factor: np.float32, left: Vector) -> bytes:
        """Code `delta + residual * factor`, and write what the code leaves out of it to `left`; see `FusedCodec`."""
        chosen = select_largest_compensated(
            delta, residual, factor, count_kept(self.options.density, residual.size), left
        )
        if self.options.max_bytes is not None:
            blob = self._fill(left, self.options.max_bytes)
            sent = self.decode(blob, residual.size)
            add_at(left, sent.positions, -sent.values)
            return blob
        code = self._pack(chosen.values)
        blob = self._wrap(residual.size, chosen, code)
        decoded = self._values.unpack(Reader(memoryview(code)), chosen.values.size)
        negated = apply_signs(decoded, chosen.values > 0) if self._values.signed else -decoded
        add_at(left, chosen.positions, negated)
        return blob

    def _pack(self, values: Vector) -> bytes:
        return self._values.pack(values)

    def _fill(self, update: Vector, limit: int) -> bytes:
        """Encode as many elements as fit into `limit` bytes."""

        def encode_count(count: float) -> bytes:
            chosen = select_largest(update, round(count))
            return self._wrap(update.size, chosen, self._pack(chosen.values))

        return fill(encode_count, limit, limit, 1, np.size(update))

    def _wrap(self, size: int, chosen: Largest, code: bytes) -> bytes:
        if self._values.signed:
            negative = chosen.values < 0
            support = signed_positions.pack(chosen.positions, negative, size, self.layout, self.options.coder)
        else:
            support = coding.pack(chosen.positions, size, self.layout, self.options.coder)
        return wrap_update(self.wire_id, size, varint(chosen.positions.size), code, support)

    @classmethod
    def decode(cls, blob: Blob, size: int) -> SparseUpdate:
        """Decode an untrusted blob as `encode` writes it."""
        reader = unwrap_update(blob, size, cls.wire_id)
        if (count := reader.varint()) > size:  # before memory is allocated for them
            raise CodecError(f"{count} values in a vector of {size}")
        values = cls._values.unpack(reader, count)
        if not cls._values.signed:
            return SparseUpdate(size, coding.unpack(reader, count, size).positions, values)
        at, negative = signed_positions.unpack(reader, count, size)
        return SparseUpdate(size, at, apply_signs(values, negative))


@dataclass(frozen=True)
class TopKFp16(_TopK):
    """Values in float16 with a power-of-two scale for each 1024 of them: see `fp16_blocks`."""

    name = "topk-fp16"
    wire_id = 4
    _values = ValueCode(fp16_blocks.pack, fp16_blocks.unpack)


class TopKSignOptions(SparseOptions):
    """Options of `topk-sign`.

    Attributes:
        overshoot: The magnitude is at least this times the smallest that is sent, and at least the mean. 1 gives the
            mean, whose error is smallest. With error feedback a larger value is better: a coordinate that is sent has
            drifted, and will drift on, and what is sent ahead of it saves sending it again. At 2 the code rounds to the
            nearest multiple of its magnitude; above 2, coordinates would oscillate.
    """

    overshoot: Overshoot = 1.0


@dataclass(frozen=True)
class TopKSign(_TopK):
    """Signs, and one magnitude for all: see `magnitudes`."""

    name = "topk-sign"
    wire_id = 5
    options_type: ClassVar[type[CodecOptions]] = TopKSignOptions
    _values = ValueCode(magnitudes.pack, magnitudes.unpack, signed=True)

    options: TopKSignOptions

    def _pack(self, values: Vector) -> bytes:
        return magnitudes.pack(values, self.options.overshoot)


@dataclass(frozen=True)
class TopK2Bit(_TopK):
    """A sign and one of two magnitudes, two bits a value or less: see `magnitudes`."""

    name = "topk-2bit"
    wire_id = 6
    _values = ValueCode(magnitudes.pack_two, magnitudes.unpack_two, signed=True)


@dataclass(frozen=True)
class TopKInt8(_TopK):
    """Integers from -127 to 127 with one scale for each 1024 values: see `int8_blocks`."""

    name = "topk-int8"
    wire_id = 7
    _values = ValueCode(int8_blocks.pack, int8_blocks.unpack)
