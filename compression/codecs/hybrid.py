"""The codec `hybrid`: low rank, and the largest elements of what is left by their signs.

With a budget one step serves both, as within the low-rank part (`water_filling`): an element that is left is sent from
the magnitude at which it gains as much for each bit as a component at its own limit does.

Payload: the vector's shapes (`geometry`); bytes of the factors as a varint, and the factors (`factors`); k as a varint,
the magnitude of the k values (`magnitudes`), their signs and the k positions (`signed_positions`), which take the rest
of the blob.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedglm.compression.codecs.budget import check_room, fill
from fedglm.compression.codecs.options import CodecOptions, CoderName, Density, MaxBytes, Rank
from fedglm.compression.codecs.selection import Largest, kept, largest
from fedglm.compression.errors import CodecError
from fedglm.compression.layout import Layout
from fedglm.compression.lowrank.factors import Factors, Frame, to_float32
from fedglm.compression.lowrank.water_filling import LARGEST, Analysis, rank_of
from fedglm.compression.positions import geometry, signed
from fedglm.compression.updates import DenseUpdate
from fedglm.compression.values import magnitudes
from fedglm.compression.vectors import Vector, checked
from fedglm.compression.wire.envelope import Blob, Reader, seal_update, unseal_update, varint

_WORTH = 1.2
"""Magnitude, in steps, from which an element that is left is worth about 7 bits: where a component at its own limit
(`water_filling.WORTH`), of about 0.9 bits an entry, gains as much for a bit."""


class HybridOptions(CodecOptions):
    """Options of `hybrid`.

    Attributes:
        rank: components of a matrix on average; see `LowRankOptions`.
        density: share of the elements of the rest that is sent.
        max_bytes: length of the whole blob; when given, rank, precision and density are what fits.
        coder: of the positions.
    """

    rank: Rank = 4
    density: Density = 0.01
    max_bytes: MaxBytes = None
    coder: CoderName = "smallest"


@dataclass(frozen=True)
class Hybrid:
    """Quantized low-rank factors, and a sparse rest.

    Attributes:
        options: see `HybridOptions`.
        layout: tensors behind the vector; see `LowRank`.
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
        vector = np.clip(checked(update, "the update"), -LARGEST, LARGEST)
        shapes = geometry.shapes_of(self.layout, vector.size)
        frame = Frame(shapes)
        head = geometry.pack(shapes)
        rank = self.options.rank if self.options.max_bytes is None else rank_of(self.options.max_bytes, frame) / 2
        analysis = Analysis(vector, frame, rank)

        def code(step: float, density: float | None) -> bytes:
            factors = analysis.quantize(step)
            rest = vector - factors.to_vector(frame)
            count = (
                kept(density, vector.size)
                if density
                else np.count_nonzero(np.abs(rest) > _WORTH * analysis.absolute(step))
            )
            chosen = largest(rest, int(count)) if count else Largest(np.zeros(0, np.int64), np.zeros(0, np.float32))
            first = factors.pack(frame)
            support = signed.pack(chosen.positions, chosen.values < 0, vector.size, self.layout, self.options.coder)
            return seal_update(
                self.wire_id,
                vector.size,
                head,
                varint(len(first)),
                first,
                varint(chosen.positions.size),
                magnitudes.pack(chosen.values),
                support,
            )

        step = analysis.step_of_rank(rank)
        if self.options.max_bytes is None or analysis.coarsest == 0:
            return code(step, self.options.density)
        return fill(
            lambda fineness: code(1 / fineness, None),
            self.options.max_bytes,
            1 / step,
            1 / max(analysis.coarsest, 2 / _WORTH),  # the analysis brings the largest element to below one
            1 / analysis.finest,
        )

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode what `encode` wrote, from a stranger too; each value is rounded twice at most."""
        reader = unseal_update(blob, size, cls.wire_id)
        frame = Frame(geometry.unpack(reader, size))
        factors = Factors.unpack(Reader(reader.take(reader.varint())), frame)
        if (count := reader.varint()) > size:
            raise CodecError(f"{count} values in a vector of {size}")
        magnitude = magnitudes.unpack(reader, count)
        at, negative = signed.unpack(reader, count, size)
        values = signed.with_signs(magnitude, negative)
        vector = factors.to_vector(frame)
        sums = to_float32(vector[at].astype(np.float64) + values)
        vector[at] = np.where(np.abs(sums) < np.finfo(np.float32).tiny, np.float32(0), sums)  # no subnormals
        return DenseUpdate(vector, factors.work(frame) + count)
