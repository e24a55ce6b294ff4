import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.rans import STATE_BYTES, LaneDecoder, LaneEncoder, stream_size


def draw(seed, lanes, steps):
    """Bits in vectors of any length up to the lanes, with probabilities of every size, then raw bits."""
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        probability = np.clip((65536 / (1 + np.exp(rng.normal(0, 4, rng.integers(0, lanes + 1))))), 1, 65535)
        probability = probability.astype(np.int64)
        yield rng.random(probability.size) * 65536 < probability, probability
    for _ in range(rng.integers(0, 5)):
        yield rng.random(rng.integers(0, 12 * lanes)) < rng.choice([0, 0.5]), None


def encode(calls, lanes):
    encoder = LaneEncoder(lanes)
    for bits, probability in calls:
        if probability is None:
            encoder.code_raw(bits, bits.size)
        else:
            encoder.code_bits(bits, probability)
    return encoder.finish()


def decode(blob, words, raw, calls, lanes):
    decoder = LaneDecoder(blob, lanes, words, raw)
    for bits, probability in calls:
        read = decoder.code_raw(None, bits.size) if probability is None else decoder.code_bits(None, probability)
        assert np.array_equal(read, bits)
    decoder.finish()


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 60))
def test_bits_come_back(seed, lanes, steps):
    calls = list(draw(seed, lanes, steps))
    blob, words, raw = encode(calls, lanes)
    assert len(blob) == stream_size(lanes, words, raw)
    decode(blob, words, raw, calls, lanes)


@pytest.mark.parametrize("share", [0.5, 0.42, 0.1, 0.01])
def test_a_code_is_as_long_as_its_bits_are_surprising(share):
    # Each lane costs its 40 bits of state less what of the code lies in it, 16 bits on average: 24 at most 40.
    lanes, steps = 16, 4000
    bits = np.random.default_rng(0).random((steps, lanes)) < share
    one = round(share * 65536)
    blob, *_ = encode([(row, np.full(lanes, one)) for row in bits], lanes)
    ideal = -np.log2(np.where(bits, one / 65536, 1 - one / 65536)).sum() / 8
    assert ideal < len(blob) < ideal * 1.0005 + lanes * STATE_BYTES


def test_raw_bits_pay_for_the_lanes():
    # 24 of a lane's 40 bits hold the last raw bits.
    lanes, rng = 16, np.random.default_rng(0)
    calls = [(rng.random(lanes) < 0.5, np.full(lanes, 1 << 15)) for _ in range(1000)] + [(rng.random(4000) < 0.5, None)]
    blob, words, raw = encode(calls, lanes)
    decode(blob, words, raw, calls, lanes)
    assert (16_000 + 4000) / 8 <= len(blob) <= (16_000 + 4000) / 8 + lanes * 2


def test_a_damaged_stream_is_refused():
    calls = list(draw(7, 8, 40))
    blob, words, raw = encode(calls, 8)
    for wrong in ((blob[:-1], words, raw), (blob + b"\0", words, raw), (blob, words + 1, raw), (blob, words - 1, raw)):
        with pytest.raises(InferenceError):
            decode(*wrong, calls, 8)
    with pytest.raises(InferenceError, match="state"):
        LaneDecoder(bytes(8 * STATE_BYTES), 8, 0, 0)
    with pytest.raises(InferenceError, match="lanes"):
        LaneDecoder(b"", 0, 0, 0)


def test_a_word_too_many_or_too_few_is_refused():
    calls = [(np.ones(4, bool), np.full(4, 60_000))] * 500
    blob, words, _ = encode(calls, 4)
    with pytest.raises(InferenceError, match="end before"):
        decode(blob[:-2], words - 1, 0, calls, 4)
    with pytest.raises(InferenceError, match="go on"):
        decode(blob + b"\0\0", words + 1, 0, calls, 4)


def test_another_end_is_noticed():
    calls = [(np.ones(4, bool), np.full(4, 60_000))] * 50
    blob, words, raw = encode(calls, 4)
    decoder = LaneDecoder(blob, 4, words, raw)
    for _, probability in calls[:-1]:
        decoder.code_bits(None, probability)
    with pytest.raises(InferenceError, match="go on"):
        decoder.finish()
