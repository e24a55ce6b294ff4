"""The codec `lowrank`: the strongest directions of each matrix, as entropy-coded integers.

The updates of several local steps are nearly of low rank in a run's first rounds. PowerSGD (Vogels et al., arXiv
1905.13727) sends two float factors of one rank for every matrix; here rank and precision follow from the singular
values (`water_filling`). Tensors that are no matrix, or too thin for one, are coded element by element with the same
step.

Payload: the vector's shapes (`geometry`), and the factors (`factors`), which take the rest of the blob.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedglm.compression.codecs.budget import check_room, fill
from fedglm.compression.codecs.options import CodecOptions, MaxBytes, Rank
from fedglm.compression.layout import Layout
from fedglm.compression.lowrank.factors import Factors, Frame
from fedglm.compression.lowrank.water_filling import LARGEST, Analysis, estimate_rank
from fedglm.compression.positions import geometry
from fedglm.compression.updates import DenseUpdate
from fedglm.compression.vectors import Vector, check_vector
from fedglm.compression.wire.envelope import Blob, unwrap_update, wrap_update


class LowRankOptions(CodecOptions):
    """Options of `lowrank`.

    Attributes:
        rank: Average number of components per matrix, weighted by the sum of its sides; a single matrix gets no more.
        max_bytes: Maximum length of the whole blob; when given, rank and precision follow from it.
    """

    rank: Rank = 4
    max_bytes: MaxBytes = None


@dataclass(frozen=True)
class LowRank:
    """Quantized low-rank factors.

    Attributes:
        options: See `LowRankOptions`.
        layout: Tensors behind the vector. Without one it is one row, and its elements are quantized one by one.
    """

    name: ClassVar[str] = "lowrank"
    wire_id: ClassVar[int] = 8
    options_type: ClassVar[type[CodecOptions]] = LowRankOptions

    options: LowRankOptions
    layout: Layout | None = None

    def __post_init__(self) -> None:
        check_room(self.options.max_bytes, self.layout)

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = np.clip(check_vector(update, "the update"), -LARGEST, LARGEST)
        shapes = geometry.to_shapes(self.layout, vector.size)
        frame = Frame(shapes)
        head = geometry.pack(shapes)
        rank = self.options.rank if self.options.max_bytes is None else estimate_rank(self.options.max_bytes, frame)
        analysis = Analysis(vector, frame, rank)

        def encode_with(step: float) -> bytes:
            return wrap_update(self.wire_id, vector.size, head, analysis.quantize(step).pack(frame))

        step = analysis.step_for_rank(rank)
        if self.options.max_bytes is None or analysis.coarsest == 0:
            return encode_with(step)
        return fill(
            lambda fineness: encode_with(1 / fineness),
            self.options.max_bytes,
            1 / step,
            1 / analysis.coarsest,
            1 / analysis.finest,
        )

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode an untrusted blob as `encode` writes it; each value is rounded once."""
        reader = unwrap_update(blob, size, cls.wire_id)
        frame = Frame(geometry.unpack(reader, size))
        factors = Factors.unpack(reader, frame)
        return DenseUpdate(factors.to_vector(frame), factors.work(frame))
