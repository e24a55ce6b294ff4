import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights import fixed_width as fixed


@given(st.integers(1, 8), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_bits_come_back_and_take_their_width(width, count, seed):
    digits = np.random.default_rng(seed).integers(0, 1 << width, count).astype(np.uint8)
    blob = fixed.pack_bits(digits, width)
    assert len(blob) == fixed.bits_size(count, width) == -(-count * width // 8)
    assert np.array_equal(fixed.unpack_bits(blob, count, width), digits)


@pytest.mark.parametrize("count", [65536, 65537, 131_071])
@pytest.mark.parametrize("width", [1, 3, 5])
def test_bits_come_back_across_blocks(width, count):
    digits = np.random.default_rng(count).integers(0, 1 << width, count).astype(np.uint8)
    assert np.array_equal(fixed.unpack_bits(fixed.pack_bits(digits, width), count, width), digits)


@given(st.lists(st.integers(0, 2), max_size=100))
def test_five_trits_take_a_byte(trits):
    digits = np.array(trits, np.uint8)
    blob = fixed.pack_trits(digits)
    assert len(blob) == fixed.trits_size(digits.size) == -(-digits.size // 5)
    assert np.array_equal(fixed.unpack_trits(blob, digits.size), digits)


@given(st.lists(st.tuples(st.integers(0, 3), *[st.sampled_from([0, 2])] * 3), max_size=60))
def test_four_sparse_trits_take_five_bits(groups):
    digits = np.array([[*signs[:place], 1, *signs[place:]] for place, *signs in groups], np.uint8).reshape(-1)
    assert fixed.is_sparse34(digits)
    blob = fixed.pack_sparse34(digits)
    assert len(blob) == fixed.sparse34_size(digits.size) == -(-5 * len(groups) // 8)
    assert np.array_equal(fixed.unpack_sparse34(blob, digits.size), digits)


@pytest.mark.parametrize("digits", [[1, 1, 0, 2], [0, 2, 0, 2], [1, 0, 0]])
def test_other_trits_are_not_sparse(digits):
    assert not fixed.is_sparse34(np.array(digits, np.uint8))


def test_malformed_digits_are_refused():
    for blob, count, width in ((b"", 1, 1), (b"\0\0", 1, 4), (b"\x0f", 1, 4)):
        with pytest.raises(InferenceError):
            fixed.unpack_bits(blob, count, width)
    for blob, count in ((b"", 1), (b"\xf3", 5), (b"\xf2", 4)):
        with pytest.raises(InferenceError):
            fixed.unpack_trits(blob, count)
    with pytest.raises(InferenceError, match="groups of four"):
        fixed.unpack_sparse34(b"\0", 3)
