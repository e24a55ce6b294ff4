"""A model of float16 values, without loss, in about five sixths of their bytes.

A trained model's exponents lie close together and its signs and mantissas are as good as random. So only the five bits
of the exponent are modelled, each by those before it and by the exponent of the element before; the other eleven go
as they are. The range code is that of `range_kernels`.
"""

import numpy as np
import numpy.typing as npt

from fedglm.compression import range_kernels as rc
from fedglm.compression.errors import CodecError
from fedglm.compression.kernels import kernel
from fedglm.compression.vectors import Vector
from fedglm.compression.wire import Reader

Halves = npt.NDArray[np.uint16]

_STATIONARY = 1023


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


@kernel
def encode_halves(words: Halves, out: rc.Code) -> int:
    """Code the bits of float16 numbers, shape (n,); returns the code's length, above `out.size` if it does not fit."""
    state = rc.start_encoding()
    model = np.zeros((1024, 2), np.int64)
    model[:, 0] = 1 << 15
    before = 0
    for word in words:
        bits = int(word)
        exponent = bits >> 10 & 31
        node = 1
        for bit in range(4, -1, -1):
            one = exponent >> bit & 1
            rc.encode_bit(state, out, model, before << 5 | node, one, _STATIONARY)
            node = node << 1 | one
        rc.encode_raw(state, out, bits >> 15 << 10 | bits & 1023, 11)
        before = exponent
    return rc.end_encoding(state, out)


@kernel
def decode_halves(code: rc.Code, words: Halves) -> bool:
    """Fill `words`, shape (n,), from what `encode_halves` wrote; False for any other code."""
    state = rc.start_decoding(code)
    model = np.zeros((1024, 2), np.int64)
    model[:, 0] = 1 << 15
    before = 0
    for index in range(words.size):
        node = 1
        for _ in range(5):
            node = node << 1 | rc.decode_bit(state, code, model, before << 5 | node, _STATIONARY)
        before = node - 32
        rest = rc.decode_raw(state, code, 11)
        words[index] = rest >> 10 << 15 | before << 10 | rest & 1023
    return rc.finished(state, code)
