import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.rans import STATE_BYTES, LaneDecoder, LaneEncoder


def draw(seed, lanes, steps):
    """Bits in vectors of any length up to the lanes, with probabilities of every size, and raw bits between them."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        if rng.random() < 0.2:
            yield rng.random(rng.integers(0, 20)) < 0.5, None
        else:
            probability = np.clip((65536 / (1 + np.exp(rng.normal(0, 4, rng.integers(0, lanes + 1))))), 1, 65535)
            probability = probability.astype(np.int64)
            yield rng.random(probability.size) * 65536 < probability, probability


def encode(calls, lanes):
    encoder = LaneEncoder(lanes)
    for bits, probability in calls:
        if probability is None:
            encoder.code_raw(bits, bits.size)
        else:
            encoder.code_bits(bits, probability)
    return encoder.finish()


def decode(blob, words, calls, lanes):
    decoder = LaneDecoder(blob, lanes, words)
    for bits, probability in calls:
        read = decoder.code_raw(None, bits.size) if probability is None else decoder.code_bits(None, probability)
        assert np.array_equal(read, bits)
    decoder.finish()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 60))
def test_bits_come_back(seed, lanes, steps):
    calls = list(draw(seed, lanes, steps))
    blob, words = encode(calls, lanes)
    decode(blob, words, calls, lanes)


@pytest.mark.parametrize("share", [0.5, 0.42, 0.1, 0.01])
def test_a_code_is_as_long_as_its_bits_are_surprising(share):
    # Each lane costs its 40 bits of state less what of the code lies in it, 16 bits on average: 24 at most 40.
    lanes, steps = 16, 4000
    bits = np.random.default_rng(0).random((steps, lanes)) < share
    one = round(share * 65536)
    blob, _ = encode([(row, np.full(lanes, one)) for row in bits], lanes)
    ideal = -np.log2(np.where(bits, one / 65536, 1 - one / 65536)).sum() / 8
    assert ideal < len(blob) < ideal * 1.0005 + lanes * STATE_BYTES


def test_a_damaged_stream_is_refused():
    calls = list(draw(7, 8, 40))
    blob, words = encode(calls, 8)
    for wrong in ((blob[:-1], words), (blob + b"\0", words), (blob, words + 1), (blob, words - 1), (b"", 0)):
        with pytest.raises((InferenceError, AssertionError)):
            decode(*wrong, calls, 8)
    with pytest.raises(InferenceError, match="state"):
        LaneDecoder(bytes(8 * STATE_BYTES), 8, 0)


def test_another_end_is_noticed():
    calls = [(np.ones(4, bool), np.full(4, 60_000))] * 50
    blob, words = encode(calls, 4)
    decoder = LaneDecoder(blob, 4, words)
    for _, probability in calls[:-1]:
        decoder.code_bits(None, probability)
    with pytest.raises(InferenceError, match="go on"):
        decoder.finish()
