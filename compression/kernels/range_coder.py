"""A range coder in integers: the primitives that compiled models are built from.

Martin, "Range encoding" (1979); the adaptive bit and its rate of one over the number of bits seen as in Mahoney's paq.

A message is an interval [low, low + range) of [0, 1), narrowed symbol by symbol; a window of 56 bits of it is processed
at a time. Its code is the shortest byte string that lies within the interval when followed by infinitely many zeros; of
several the smallest. So a code never ends in a zero byte, the empty code is a message too, and each message has exactly
one code: `is_finished` tells a decoder whether it has read that one.

    encoder = start_encoding()                        decoder = start_decoding(code)
    encode(encoder, out, start, width, bits)          value = decode_value(decoder, bits); find its symbol
                                                      decode_step(decoder, code, start, width, bits)
    encode_bit(encoder, out, model, at, bit, limit)   bit = decode_bit(decoder, code, model, at, limit)
    encode_raw(encoder, out, value, bits)             value = decode_raw(decoder, code, bits)
    length = end_encoding(encoder, out)               finished(decoder, code)

Bytes that do not fit in `out` are counted but not written: a length above `out.size` means that `out` does not hold the
code. A decoder reads zeros after the end of `code`, so the caller has to bound every loop that depends on decoded
values.

All state is int64, because numba takes int64 with uint64 for float64.
"""

from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from fedglm.compression.kernels.compiled import kernel

State: TypeAlias = npt.NDArray[np.int64]
"""Shape (3,): low end (encoder) or distance of the code from it (decoder), range, bytes written or read."""

Code: TypeAlias = npt.NDArray[np.uint8]

Model: TypeAlias = npt.NDArray[np.int64]
"""Adaptive bits, shape (contexts, 2): probability of a one in units of 2**-16, and bits seen, up to the limit."""

WIDTH: Final = 56
_FULL: Final = 1 << WIDTH
_MIN_RANGE: Final = 1 << (WIDTH - 8)
_BELOW_TOP: Final = WIDTH - 8
_MASK: Final = _MIN_RANGE - 1

MAX_BITS: Final = 32
"""Maximum bits of the total frequency of `encode` and of a raw value; it leaves 2**16 units of the range or more."""

MAX_LIMIT: Final = 1023
_SURE: Final = 24  # no bit is surer than 1 - 24 / 2**16, so none costs more than 11.4 bits
_RATE: Final = np.array([(2 << 16) // (2 * seen + 3) for seen in range(MAX_LIMIT + 1)], np.int64)


@kernel
def new_model(contexts: int) -> Model:
    """Return adaptive bits that have seen nothing, shape (contexts, 2)."""
    model = np.zeros((contexts, 2), np.int64)
    model[:, 0] = 1 << 15
    return model


@kernel
def start_encoding() -> State:
    """Return an encoder's state before the first symbol."""
    state = np.zeros(3, np.int64)
    state[1] = _FULL
    return state


@kernel
def _carry(out: Code, at: int) -> None:
    """Add one to the number that ends just before `at`."""
    at = min(at, out.size) - 1  # a code that does not fit is discarded: a carry may be lost in it
    while at >= 0 and out[at] == 0xFF:
        out[at] = 0
        at -= 1
    if at >= 0:
        out[at] += 1


@kernel
def _narrow(state: State, out: Code, offset: int, width: int) -> None:
    """Narrow the interval to `width` units of the range, from `offset` on."""
    low = state[0] + offset
    at = state[2]
    if low >= _FULL:
        low -= _FULL
        _carry(out, at)
    while width < _MIN_RANGE:
        if at < out.size:
            out[at] = low >> _BELOW_TOP
        at += 1
        low = (low & _MASK) << 8
        width <<= 8
    state[0] = low
    state[1] = width
    state[2] = at


@kernel
def encode(state: State, out: Code, start: int, width: int, bits: int) -> None:
    """Code a symbol of cumulative frequency `start` and frequency `width` > 0 out of 2**bits; at most MAX_BITS."""
    unit = state[1] >> bits
    offset = start * unit
    # the last symbol gets what the division left over
    _narrow(state, out, offset, state[1] - offset if start + width == 1 << bits else width * unit)


@kernel
def encode_raw(state: State, out: Code, value: int, bits: int) -> None:
    """Code the `bits` low bits of a value, each at the cost of one bit; at most MAX_BITS."""
    encode(state, out, value, 1, bits)


@kernel
def _clamp_probability(model: Model, at: int) -> int:
    """Return the probability of a one in units of 2**-16, kept away from 0 and 1."""
    probability: int = model[at, 0]
    return max(_SURE, min((1 << 16) - _SURE, probability))


@kernel
def _learn(model: Model, at: int, bit: int, limit: int) -> None:
    """Move the probability towards `bit` by one over the bits seen so far: fast at first, by 1 / limit in the end."""
    seen = model[at, 1]
    model[at, 0] += (((bit << 16) - model[at, 0]) * _RATE[seen]) >> 16
    if seen < limit:
        model[at, 1] = seen + 1


@kernel
def encode_bit(state: State, out: Code, model: Model, at: int, bit: int, limit: int) -> None:
    """Code a bit by the adaptive context `at`, and update the context; limit is at most MAX_LIMIT."""
    ones = (state[1] >> 16) * _clamp_probability(model, at)
    if bit:
        _narrow(state, out, 0, ones)
    else:
        _narrow(state, out, ones, state[1] - ones)
    _learn(model, at, bit, limit)


@kernel
def end_encoding(state: State, out: Code) -> int:
    """Write the shortest ending; return the code's length, above `out.size` where it did not fit."""
    low = state[0]
    last = low + state[1] - 1
    at: int = state[2]
    for size in range(8):  # bytes of the end; the range leaves a choice of its first byte or of a later one
        step = 1 << (WIDTH - 8 * size)
        value = -(-low // step) * step
        if value <= last:
            break
    if value >= _FULL:
        value -= _FULL
        _carry(out, at)
    for _ in range(size):
        if at < out.size:
            out[at] = value >> _BELOW_TOP
        at += 1
        value = (value & _MASK) << 8
    if at <= out.size:
        while at > 0 and out[at - 1] == 0:
            at -= 1
    return at


@kernel
def start_decoding(code: Code) -> State:
    """Return a decoder's state before the first symbol."""
    state = np.zeros(3, np.int64)
    for at in range(WIDTH // 8):
        state[0] = state[0] << 8 | (code[at] if at < code.size else 0)
    state[1] = _FULL
    state[2] = WIDTH // 8
    return state


@kernel
def _follow(state: State, code: Code, offset: int, width: int) -> None:
    """Narrow the interval to `width` units of the range, from `offset` on."""
    distance = state[0] - offset
    at = state[2]
    while width < _MIN_RANGE:
        distance <<= 8
        if at < code.size:
            distance |= np.int64(code[at])
        at += 1
        width <<= 8
    state[0] = distance
    state[1] = width
    state[2] = at


@kernel
def decode_value(state: State, bits: int) -> int:
    """Return the frequency, 0 to below 2**bits, at which the code lies; `decode_step` takes its symbol's interval."""
    value: int = state[0] // (state[1] >> bits)
    return min(value, (1 << bits) - 1)


@kernel
def decode_step(state: State, code: Code, start: int, width: int, bits: int) -> None:
    """Consume the symbol of cumulative frequency `start` and frequency `width` out of 2**bits."""
    unit = state[1] >> bits
    offset = start * unit
    _follow(state, code, offset, state[1] - offset if start + width == 1 << bits else width * unit)


@kernel
def decode_raw(state: State, code: Code, bits: int) -> int:
    """Decode what `encode_raw` coded."""
    value = decode_value(state, bits)
    decode_step(state, code, value, 1, bits)
    return value


@kernel
def decode_bit(state: State, code: Code, model: Model, at: int, limit: int) -> int:
    """Decode what `encode_bit` coded with the same context and limit."""
    ones = (state[1] >> 16) * _clamp_probability(model, at)
    if state[0] < ones:
        _follow(state, code, 0, ones)
        bit = 1
    else:
        _follow(state, code, ones, state[1] - ones)
        bit = 0
    _learn(model, at, bit, limit)
    return bit


@kernel
def is_finished(state: State, code: Code) -> bool:
    """Return whether `code` is the one code of the decoded message, with no byte too many, too few or different."""
    if code.size > 0 and code[code.size - 1] == 0:
        return False
    left = state[2] - code.size  # zeros that were read after the end
    if left < 0:
        return False
    if left >= WIDTH // 8:  # the code ends before the current window: it cannot be shorter
        return True
    # In the current window the code must be the smallest multiple of `step` in the interval, and no multiple of 256
    # steps may lie in it.
    step = 1 << 8 * left
    coarse: int = (code[code.size - 1] if code.size > 0 else 0) * step
    distance: int = state[0]
    width: int = state[1]
    return bool(distance < step and distance - coarse + 256 * step >= width)
