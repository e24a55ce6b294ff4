"""A codec of one's own: one bit for each element, held against those that come with fedglm.

    pip install 'fedglm[node]'
    python examples/own_codec.py

prints what a least-squares problem that is solved by coded steps sends, and the error that is left of 1:

    dense-fp32      804.4 kB   error 0.0006
    int8            206.0 kB   error 0.0006
    topk-sign        16.1 kB   error 0.0005
    one-bit          31.2 kB   error 0.0006

A codec has a name, a number, `encode` and `decode`; `fedglm.compression.codec.Codec` says what they promise. It goes
wherever a codec is taken in Python, as into `ErrorFeedback.encode`. To choose it by name, in a scenario or in
`compress_uplink`, add it to the registry in compression/codec.py: both ends must know it, and tests/compression/codecs
holds all that stand there to the same laws.
"""

from typing import ClassVar

import numpy as np

from fedglm import ErrorFeedback, make_codec
from fedglm.compression.updates import DenseUpdate
from fedglm.compression.vectors import Vector, check_vector
from fedglm.compression.wire.envelope import Blob, unwrap_update, wrap_update


class OneBit:
    """The sign of each element, and one magnitude for all (Seide et al., "1-bit SGD", Interspeech 2014).

    Payload: the mean magnitude as float32, then n bits, the first in the highest place, 1 for above 0.
    """

    name: ClassVar[str] = "one-bit"
    wire_id: ClassVar[int] = 200  # of none that is registered

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,)."""
        vector = check_vector(update, "the update")  # refuses NaN and infinity
        magnitude = np.abs(vector).mean(dtype=np.float64).astype("<f4")
        return wrap_update(self.wire_id, vector.size, magnitude.tobytes(), np.packbits(vector > 0).tobytes())

    @classmethod
    def decode(cls, blob: Blob, size: int) -> DenseUpdate:
        """Decode what `encode` wrote; whatever else it is given is a CodecError before memory is taken."""
        reader = unwrap_update(blob, size, cls.wire_id)
        (magnitude,) = reader.array("<f4", 1)
        signs = np.unpackbits(reader.array("u1", -(-size // 8)), count=size)
        reader.finish()
        return DenseUpdate(np.where(signs == 1, magnitude, -magnitude).astype(np.float32))


def solve(codec, steps: int = 400) -> tuple[int, float]:
    """Least squares by steps that travel coded.

    Returns:
        Bytes of all steps, and the mean squared error that is left, 1 at the start.
    """
    random = np.random.default_rng(0)
    rows = random.normal(size=(2000, 500)) / np.sqrt(2000)
    wanted = random.normal(size=500)
    place, sent, feedback = np.zeros(500), 0, ErrorFeedback(500)
    for _ in range(steps):
        gradient = rows.T @ (rows @ (place - wanted))
        blob = feedback.encode(codec, (-0.02 * gradient).astype(np.float32))
        place += codec.decode(blob, 500).to_dense()
        feedback.commit()  # the other end has it
        sent += len(blob)
    return sent, float(np.mean((place - wanted) ** 2) / np.mean(wanted**2))


if __name__ == "__main__":
    for codec in (make_codec("dense-fp32"), make_codec("int8"), make_codec("topk-sign", density=0.05), OneBit()):
        sent, error = solve(codec)
        print(f"{codec.name:12} {sent / 1e3:8.1f} kB   error {error:.4f}")
