"""Lossless code of a model's float16 values, in about five sixths of their bytes.

A trained model's exponents lie close together and its signs and mantissas are practically random. So only the five bits
of the exponent are modelled, each by the bits before it and by the exponent of the previous element; the other eleven
bits are stored raw. The range coder is `kernels.range_coder`.
"""

import numpy as np

from fedglm.compression.errors import CodecError
from fedglm.compression.kernels.snapshots import decode_fp16, encode_fp16
from fedglm.compression.vectors import Vector
from fedglm.compression.wire.envelope import Reader


def pack(vector: Vector) -> bytes:
    """Code a float32 vector of shape (n,) whose elements are float16 numbers."""
    words = vector.astype("<f2").view(np.uint16)
    code = np.empty(2 * words.size + 64, np.uint8)
    length = encode_fp16(words, code)
    if length > code.size:  # random bits, unlike any trained model
        code = np.empty(length, np.uint8)
        encode_fp16(words, code)
    return code[:length].tobytes()


def unpack(reader: Reader, size: int) -> Vector:
    """Decode `size` elements, float32, from the rest of `reader`. The values may be NaN or infinity.

    Raises:
        CodecError: The code is too short or too long for so many elements.
    """
    if size * 11 > 8 * reader.remaining + 64:  # before memory is allocated for them
        raise CodecError(f"{size} coded float16 values do not fit in {reader.remaining} bytes")
    code = np.ascontiguousarray(reader.array("<u1", reader.remaining))
    words = np.empty(size, np.uint16)
    if not decode_fp16(code, words):
        raise CodecError("the code of the snapshot is damaged")
    return words.view(np.float16).astype(np.float32)
