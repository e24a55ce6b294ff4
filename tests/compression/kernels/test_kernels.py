"""The numba kernels against plain twins that define them."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fedglm.compression.codec import CodecError
from fedglm.compression.kernels import compiled
from fedglm.compression.kernels import range_coder as rc
from fedglm.compression.positions import golomb_rice
from fedglm.compression.wire.envelope import Reader

patient = settings(deadline=None)  # the first call compiles


def encode_twin(positions, parameter):
    """Each gap: its quotient in zeros, a one, and `parameter` bits of the remainder, lowest first."""
    gaps = np.diff(positions, prepend=-1) - 1
    words = []
    for gap in gaps.tolist():
        words += [0] * (gap >> parameter) + [1] + [gap >> bit & 1 for bit in range(parameter)]
    return np.packbits(np.array(words, np.uint8), bitorder="little")


def decode_twin(code, parameter, size, count):
    """The fault and, when there is none, the positions."""
    bits = np.unpackbits(code, bitorder="little").tolist()
    positions = []
    position = -1
    for _ in range(count):
        if 1 not in bits:
            return compiled.ENDS_EARLY, None
        quotient = bits.index(1)
        if quotient > size >> parameter:
            return compiled.OUT_OF_RANGE, None
        rest = bits[quotient + 1 :]
        if len(rest) < parameter:
            return compiled.ENDS_EARLY, None
        position += 1 + (quotient << parameter) + sum(bit << at for at, bit in enumerate(rest[:parameter]))
        if position >= size:
            return compiled.OUT_OF_RANGE, None
        positions.append(position)
        bits = rest[parameter:]
    if len(bits) >= 8 or any(bits):
        return compiled.TRAILING, None
    return compiled.DECODED, positions


supports = st.sets(st.integers(0, 400), max_size=60).map(lambda chosen: np.array(sorted(chosen), np.int64))
wide_supports = st.sets(st.integers(0, (1 << 40) - 1), max_size=8).map(
    lambda chosen: np.array(sorted(chosen), np.int64)
)


@patient
@given(supports, st.integers(0, 40))
def test_encode_is_its_twin(positions, parameter):
    expected = encode_twin(positions, parameter)
    code = np.full(expected.size, 0xFF, np.uint8)
    compiled.rice_encode(positions, parameter, code)
    assert code.tobytes() == expected.tobytes()


@patient
@given(st.binary(max_size=60), st.integers(0, 40), st.integers(1, 500) | st.just(1 << 40), st.integers(0, 50))
def test_decode_is_its_twin_on_any_bytes(blob, parameter, size, count):
    code = np.frombuffer(blob, np.uint8)
    expected, positions = decode_twin(code, parameter, size, count)
    out = np.empty(count, np.int64)
    assert compiled.rice_decode(code, parameter, size, out) == expected
    if positions is not None:
        assert out.tolist() == positions


@patient
@given(supports | wide_supports)
def test_round_trip_with_the_best_parameter(positions):
    blob = golomb_rice.pack(positions)
    reader = Reader(memoryview(blob))
    assert golomb_rice.unpack(reader, positions.size, 1 << 40).tolist() == positions.tolist()
    assert reader.remaining == 0
    gaps = np.diff(positions, prepend=-1) - 1
    shortest = min(gaps.size * (1 + r) + int((gaps >> r).sum()) for r in range(41))
    assert len(blob) == 1 + -(-shortest // 8)


@pytest.mark.parametrize("density", [0.001, 0.01, 0.05])
def test_size_is_within_three_percent_of_shannon(density):
    size = 1_000_000
    support = np.flatnonzero(np.random.default_rng(7).random(size) < density)
    entropy = -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    bits = 8 * len(golomb_rice.pack(support)) / support.size
    assert bits <= 1.03 * entropy / density


def test_the_parameter_follows_the_support():
    assert len(golomb_rice.pack(np.arange(8000))) == 1 + 1000  # a bit a position where there are no gaps
    assert golomb_rice.pack(np.arange(0, 100_000, 17))[0] == 3
    assert golomb_rice.pack(np.array([(1 << 40) - 1]))[0] >= 38


@pytest.mark.parametrize(("parameter", "count"), [(41, 0), (0, 9), (7, 2), (0, 1 << 50)])
def test_no_memory_for_positions_that_cannot_be_there(parameter, count):
    with pytest.raises(CodecError):
        golomb_rice.unpack(Reader(memoryview(bytes([parameter, 0xFF]))), count, 1 << 60)


def test_kernels_work_where_numba_may_write_no_cache():
    script = (
        "import numba.core.caching as caching\n"
        "caching.FunctionCache._impl_class._locator_classes = []\n"
        "import numpy as np\n"
        "from fedglm.compression.kernels import compiled\n"
        "out = np.empty(1, np.uint8)\n"
        "compiled.rice_encode(np.array([0, 1]), 0, out)\n"
        "print(out[0])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "3\n"


class RangeTwin:
    """The range coder without carries or bytes: an interval of whole numbers that grows by a byte at a time."""

    def __init__(self):
        self.low, self.range, self.bits = 0, 1 << rc.WIDTH, rc.WIDTH
        self.probabilities, self.seen = [1 << 15] * 3, [0] * 3

    def narrow(self, offset, width):
        self.low, self.range = self.low + offset, width
        while self.range < 1 << (rc.WIDTH - 8):
            self.low, self.range, self.bits = self.low << 8, self.range << 8, self.bits + 8

    def symbol(self, start, width, bits):
        unit = self.range >> bits
        self.narrow(start * unit, self.range - start * unit if start + width == 1 << bits else width * unit)

    def bit(self, at, bit, limit):
        ones = (self.range >> 16) * max(24, min(65536 - 24, self.probabilities[at]))
        self.narrow(*((0, ones) if bit else (ones, self.range - ones)))
        rate = (2 << 16) // (2 * self.seen[at] + 3)
        self.probabilities[at] += ((bit << 16) - self.probabilities[at]) * rate >> 16
        self.seen[at] += self.seen[at] < limit  # which keeps what a higher limit has let it see

    def code(self):
        """The shortest bytes that, with zeros after them, lie in the interval; of those the least."""
        for length in range(self.bits // 8 + 1):
            step = 1 << (self.bits - 8 * length)
            value = -(-self.low // step)
            if value * step < self.low + self.range:
                return value.to_bytes(length, "big")
        raise AssertionError


def _static(bits):
    starts = st.integers(0, (1 << bits) - 1)
    return starts.flatmap(
        lambda start: st.tuples(st.just("symbol"), st.just(start), st.integers(1, (1 << bits) - start), st.just(bits))
    )


symbols = st.integers(1, 32).flatmap(_static)
raws = st.integers(0, 32).flatmap(
    lambda bits: st.tuples(st.just("raw"), st.integers(0, (1 << bits) - 1), st.just(bits))
)
bits = st.tuples(st.just("bit"), st.integers(0, 2), st.integers(0, 1), st.sampled_from([4, 255, rc.MAX_LIMIT]))
skewed = st.sampled_from([("bit", 0, 0, 255), ("bit", 1, 1, 255), ("symbol", (1 << 32) - 1, 1, 32), ("raw", 255, 8)])
messages = st.lists(symbols | raws | bits | skewed, max_size=60)


@patient
@given(messages)
@example([("raw", 255, 8)] * 30 + [("symbol", (1 << 31) - 1, 2, 32)])  # a carry may run far
def test_range_code_is_its_twin_and_is_read_back(message):
    twin = RangeTwin()
    encoder, model = rc.start_encoding(), rc.new_model(3)
    out = np.full(600, 0xAA, np.uint8)
    for kind, *step in message:
        if kind == "bit":
            twin.bit(*step)
            rc.encode_bit(encoder, out, model, *step)
        elif kind == "raw":
            value, width = step
            twin.symbol(value, 1, width)
            rc.encode_raw(encoder, out, value, width)
        else:
            twin.symbol(*step)
            rc.encode(encoder, out, *step)
    length = rc.end_encoding(encoder, out)
    expected = twin.code()
    assert out[:length].tobytes() == expected

    code = out[:length].copy()
    assert read_back(message, code)
    assert not read_back(message, np.append(code, np.uint8(0)))
    assert not read_back(message, np.append(code, np.uint8(1)))
    if length:
        assert not read_back(message, code[:-1])


def read_back(message, code):
    """Whether `code` is that of the message."""
    decoder, model = rc.start_decoding(code), rc.new_model(3)
    for kind, *step in message:
        if kind == "bit":
            at, bit, limit = step
            same = rc.decode_bit(decoder, code, model, at, limit) == bit
        elif kind == "raw":
            value, width = step
            same = rc.decode_raw(decoder, code, width) == value
        else:
            start, width, total = step
            same = start <= rc.decode_value(decoder, total) < start + width
            rc.decode_step(decoder, code, start, width, total)
        if not same:
            return False
    return rc.is_finished(decoder, code)


@patient
@given(st.binary(max_size=4), st.integers(0, 12))
def test_a_message_of_the_range_coder_has_one_code(data, count):
    code = np.frombuffer(data, np.uint8).copy()
    decoder, model = rc.start_decoding(code), rc.new_model(1)
    message = [rc.decode_bit(decoder, code, model, 0, 30) for _ in range(count)]
    twin = RangeTwin()
    for bit in message:
        twin.bit(0, bit, 30)
    assert rc.is_finished(decoder, code) == (twin.code() == data)


def test_a_range_code_that_does_not_fit_says_how_long_it_is():
    lengths = []
    for room in (0, 3, 50, 100):
        encoder, out = rc.start_encoding(), np.zeros(room, np.uint8)
        for value in range(50):
            rc.encode_raw(encoder, out, value | 0x80, 8)
        lengths.append(rc.end_encoding(encoder, out))
    assert lengths == [50, 50, 50, 50]
