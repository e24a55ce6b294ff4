"""The codec `hybrid`: low-rank factors, and the signs of the largest elements of the remainder.

With a budget one step serves both parts, as within the low-rank part (`water_filling`): an element of the remainder is
sent from the magnitude at which it gains as much per bit as the weakest component that is sent.

Payload: the vector's shapes (`geometry`); bytes of the factors as a varint, and the factors (`factors`); k as a varint,
the magnitude of the k values (`magnitudes`), their signs and the k positions (`positions.signed`), which take the rest
of the blob.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedglm.compression.codecs.budget import check_room, fill
from fedglm.compression.codecs.options import CodecOptions, CoderName, Density, MaxBytes, Rank
from fedglm.compression.codecs.selection import Largest, count_kept, select_largest
from fedglm.compression.errors import CodecError
from fedglm.compression.layout import Layout
from fedglm.compression.lowrank.factors import Factors, Frame, to_float32
from fedglm.compression.lowrank.water_filling import LARGEST, Analysis, estimate_rank
from fedglm.compression.positions import geometry, signed
from fedglm.compression.updates import DenseUpdate
from fedglm.compression.values import magnitudes
from fedglm.compression.vectors import Vector, check_vector
from fedglm.compression.wire.envelope import Blob, Reader, unwrap_update, varint, wrap_update

_WORTH = 1.2
"""Magnitude, in steps, from which an element of the remainder is worth its about 7 bits: there it gains as much per bit
as a component at its own threshold (`water_filling.WORTH`), which takes about 0.9 bits per entry."""


class HybridOptions(CodecOptions):
    """Options of `hybrid`.

    Attributes:
        rank: Average number of components per matrix; see `LowRankOptions`.
        density: Share of the elements of the remainder that is sent.
        max_bytes: Maximum length of the whole blob; when given, rank, precision and density follow from it.
        coder: Coder of the positions; see `SparseOptions`.
    """

    rank: Rank = 4
    density: Density = 0.01
    max_bytes: MaxBytes = None
    coder: CoderName = "smallest"


@dataclass(frozen=True)
class Hybrid:
    """Quantized low-rank factors, and a sparse remainder.

    Attributes:
        options: See `HybridOptions`.
        layout: Tensors behind the vector; see `LowRank`.
    """

    name: ClassVar[str] = "hybrid"
    wire_id: ClassVar[int] = 9
    options_type: ClassVar[type[CodecOptions]] = HybridOptions

    options: HybridOptions
    layout: Layout | None = None

    def __post_init__(self) -> None:
        check_room(self.options.max_bytes, self.layout)

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = np.clip(check_vector(update, "the update"), -LARGEST, LARGEST)
        shapes = geometry.to_shapes(self.layout, vector.size)
        frame = Frame(shapes)
        head = geometry.pack(shapes)
        rank = self.options.rank if self.options.max_bytes is None else estimate_rank(self.options.max_bytes, frame) / 2
        analysis = Analysis(vector, frame, rank)

        def encode_with(step: float, density: float | None) -> bytes:
            factors = analysis.quantize(step)
            rest = vector - factors.to_vector(frame)
            count = (
                count_kept(density, vector.size)
                if density
                else np.count_nonzero(np.abs(rest) > _WORTH * analysis.to_vector_units(step))
            )
            chosen = (
                select_largest(rest, int(count)) if count else Largest(np.zeros(0, np.int64), np.zeros(0, np.float32))
            )
            first = factors.pack(frame)
            support = signed.pack(chosen.positions, chosen.values < 0, vector.size, self.layout, self.options.coder)
            return wrap_update(
                self.wire_id,
                vector.size,
                head,
                varint(len(first)),
                first,
                varint(chosen.positions.size),
                magnitudes.pack(chosen.values),
                support,
            )

        step = analysis.step_for_rank(rank)
        if self.options.max_bytes is None or analysis.coarsest == 0:
            return encode_with(step, self.options.density)
        return fill(
            lambda fineness: encode_with(1 / fineness, None),
            self.options.max_bytes,
            1 / step,
            1 / max(analysis.coarsest, 2 / _WORTH),  # the analysis scales the largest element to below one
            1 / analysis.finest,
        )

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode an untrusted blob as `encode` writes it; each value is rounded twice at most."""
        reader = unwrap_update(blob, size, cls.wire_id)
        frame = Frame(geometry.unpack(reader, size))
        factors = Factors.unpack(Reader(reader.take(reader.varint())), frame)
        if (count := reader.varint()) > size:
            raise CodecError(f"{count} values in a vector of {size}")
        magnitude = magnitudes.unpack(reader, count)
        at, negative = signed.unpack(reader, count, size)
        values = signed.apply_signs(magnitude, negative)
        vector = factors.to_vector(frame)
        sums = to_float32(vector[at].astype(np.float64) + values)
        vector[at] = np.where(np.abs(sums) < np.finfo(np.float32).tiny, np.float32(0), sums)  # no subnormals
        return DenseUpdate(vector, factors.work(frame) + count)
