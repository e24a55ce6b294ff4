"""The numba kernels against plain twins that define them."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.compression import golomb_rice, kernels
from fedglm.compression.codec import CodecError
from fedglm.compression.wire import Reader


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
            return kernels.ENDS_EARLY, None
        quotient = bits.index(1)
        if quotient > size >> parameter:
            return kernels.OUT_OF_RANGE, None
        rest = bits[quotient + 1 :]
        if len(rest) < parameter:
            return kernels.ENDS_EARLY, None
        position += 1 + (quotient << parameter) + sum(bit << at for at, bit in enumerate(rest[:parameter]))
        if position >= size:
            return kernels.OUT_OF_RANGE, None
        positions.append(position)
        bits = rest[parameter:]
    if len(bits) >= 8 or any(bits):
        return kernels.TRAILING, None
    return kernels.DECODED, positions


supports = st.sets(st.integers(0, 400), max_size=60).map(lambda chosen: np.array(sorted(chosen), np.int64))
wide_supports = st.sets(st.integers(0, (1 << 40) - 1), max_size=8).map(
    lambda chosen: np.array(sorted(chosen), np.int64)
)


@given(supports, st.integers(0, 40))
def test_encode_is_its_twin(positions, parameter):
    expected = encode_twin(positions, parameter)
    code = np.full(expected.size, 0xFF, np.uint8)
    kernels.rice_encode(positions, parameter, code)
    assert code.tobytes() == expected.tobytes()


@given(st.binary(max_size=60), st.integers(0, 40), st.integers(1, 500) | st.just(1 << 40), st.integers(0, 50))
def test_decode_is_its_twin_on_any_bytes(blob, parameter, size, count):
    code = np.frombuffer(blob, np.uint8)
    expected, positions = decode_twin(code, parameter, size, count)
    out = np.empty(count, np.int64)
    assert kernels.rice_decode(code, parameter, size, out) == expected
    if positions is not None:
        assert out.tolist() == positions


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
        "from fedglm.compression import kernels\n"
        "out = np.empty(1, np.uint8)\n"
        "kernels.rice_encode(np.array([0, 1]), 0, out)\n"
        "print(out[0])\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "3\n"
