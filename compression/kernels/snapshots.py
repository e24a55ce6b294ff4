"""Compiled model of float16 numbers: each exponent is predicted from the previous one, other bits are stored raw."""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.compression.kernels import range_coder as rc
from fedglm.compression.kernels.compiled import kernel

Fp16Bits: TypeAlias = npt.NDArray[np.uint16]

_STATIONARY: Final = 1023


@kernel
def encode_fp16(words: Fp16Bits, out: rc.Code) -> int:
    """Code the bits of float16 numbers, shape (n,); return the code's length, above `out.size` if it does not fit."""
    state = rc.start_encoding()
    model = rc.new_model(1024)
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
def decode_fp16(code: rc.Code, words: Fp16Bits) -> bool:
    """Fill `words`, shape (n,), from what `encode_fp16` wrote; return False for any other code."""
    state = rc.start_decoding(code)
    model = rc.new_model(1024)
    before = 0
    for index in range(words.size):
        node = 1
        for _ in range(5):
            node = node << 1 | rc.decode_bit(state, code, model, before << 5 | node, _STATIONARY)
        before = node - 32
        rest = rc.decode_raw(state, code, 11)
        words[index] = rest >> 10 << 15 | before << 10 | rest & 1023
    return rc.is_finished(state, code)
