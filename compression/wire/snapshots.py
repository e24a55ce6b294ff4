"""A model of float16 values, without loss, in about five sixths of their bytes.

A trained model's exponents lie close together and its signs and mantissas are as good as random. So only the five bits
of the exponent are modelled, each by those before it and by the exponent of the element before; the other eleven go
as they are. The range code is that of `range_kernels`.
"""

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.kernels.snapshots import decode_halves, encode_halves
from fedglm.compression.vectors import Vector
from fedglm.compression.wire.envelope import Reader


def pack(vector: Vector) -> bytes:
    """Code a vector of shape (n,) whose elements are float16 numbers."""
    words = vector.astype("<f2").view(np.uint16)
    code = np.empty(2 * words.size + 64, np.uint8)
    length = encode_halves(words, code)
    if length > code.size:  # random bits, which no model of weights is
        code = np.empty(length, np.uint8)
        encode_halves(words, code)
    return code[:length].tobytes()


def unpack(reader: Reader, size: int) -> Vector:
    """Decode `size` elements from all that is left of `reader`.

    Raises:
        CodecError: a code that is shorter or longer than it says. The values may be NaN or infinity.
    """
    if size * 11 > 8 * reader.remaining + 64:  # before any memory is taken for them
        raise CodecError(f"{size} coded float16 values do not fit in {reader.remaining} bytes")
    code = np.ascontiguousarray(reader.array("<u1", reader.remaining))
    words = np.empty(size, np.uint16)
    if not decode_halves(code, words):
        raise CodecError("the code of the snapshot is damaged")
    return words.view(np.float16).astype(np.float32)
