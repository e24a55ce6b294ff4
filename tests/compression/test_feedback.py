import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedglm.compression.codec import FusedCodec, codec_names, make_codec
from fedglm.compression.feedback import ErrorFeedback

floats = st.floats(-(2.0**100), 2.0**100, width=32)
EXACT = tuple(name for name in codec_names() if name not in ("topk-sign", "topk-2bit"))


@st.composite
def deltas_and_residuals(draw):
    size = draw(st.integers(1, 60))
    return draw(arrays(np.float32, size, elements=floats)), draw(arrays(np.float32, size, elements=floats))


def sent_by(name, update):
    codec = make_codec(name)
    return codec.decode(codec.encode(update), update.size)


@pytest.mark.parametrize("name", codec_names())
@given(pair=deltas_and_residuals())
def test_sent_and_residual_are_delta_and_old_residual(name, pair):
    delta, old = pair
    feedback = ErrorFeedback(delta.size, residual=old)
    update = feedback.compensate(delta).copy()
    assert update.tobytes() == (delta + old).tobytes()
    sent = sent_by(name, update)
    feedback.commit(sent)
    values = sent.to_dense()
    kept = values == 0
    assert feedback.residual[kept].tolist() == update[kept].tolist()
    assert feedback.residual.tolist() == (update - values).tolist()
    if name in EXACT:  # the subtraction itself has no rounding: the value sent is within a factor of two
        assert (values.astype(np.float64) + feedback.residual == update).all()


@given(st.lists(st.integers(-1000, 1000), min_size=40, max_size=40))
def test_nothing_is_lost_over_many_rounds(numbers):
    """On whole numbers every sum is exact: all that went in has been sent or waits in the residual."""
    deltas = np.array(numbers, np.float32).reshape(10, 4)
    feedback = ErrorFeedback(4)
    sent = np.zeros(4)
    for delta in deltas:
        update = sent_by("topk-fp16", feedback.compensate(delta))
        feedback.commit(update)
        sent += update.to_dense()
    assert (sent + feedback.residual == deltas.sum(axis=0, dtype=np.float64)).all()


def test_rollback_and_repeated_compensation():
    feedback = ErrorFeedback(2, residual=np.array([1, 2], np.float32))
    for _ in range(2):
        assert feedback.compensate(np.array([3, 4], np.float32)).tolist() == [4, 6]
    feedback.rollback()
    assert feedback.residual.tolist() == [1, 2]
    with pytest.raises(RuntimeError, match="compensate or encode first"):
        feedback.commit(np.zeros(2, np.float32))


def test_commit_takes_a_vector_and_only_once():
    feedback = ErrorFeedback(2)
    feedback.compensate(np.array([3, 4], np.float32))
    feedback.commit(np.array([3, 0], np.float32))
    assert feedback.residual.tolist() == [0, 4]
    with pytest.raises(RuntimeError):
        feedback.commit(np.array([3, 0], np.float32))


@pytest.mark.parametrize(("missed", "expected"), [(0, 8.0), (1, 4.0), (3, 1.0), (4, 0.0)])
def test_a_stale_residual_decays_and_is_dropped(missed, expected):
    feedback = ErrorFeedback(1, decay=0.5, drop_after=3, residual=np.array([8], np.float32))
    assert feedback.compensate(np.zeros(1, np.float32), rounds_missed=missed).tolist() == [expected]
    assert feedback.residual.tolist() == [8]


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_poison_leaves_the_residual_untouched(poison):
    feedback = ErrorFeedback(2, residual=np.array([1, 2], np.float32))
    with pytest.raises(ValueError, match=r"delta holds .* at position 1"):
        feedback.compensate(np.array([0, poison], np.float32))
    feedback.compensate(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="residual"):
        feedback.commit(np.array([0, poison], np.float32))
    assert feedback.residual.tolist() == [1, 2]
    with pytest.raises(RuntimeError, match="nothing to commit"):
        feedback.commit(np.zeros(2, np.float32))


def test_overflow_is_an_error():
    largest = np.array([np.finfo(np.float32).max], np.float32)
    feedback = ErrorFeedback(1, residual=largest)
    with pytest.raises(ValueError, match="with its residual holds inf"):
        feedback.compensate(largest)
    assert feedback.residual.tolist() == largest.tolist()


def test_what_is_handed_out_is_a_copy():
    feedback = ErrorFeedback(2)
    before = feedback.residual
    update = feedback.compensate(np.ones(2, np.float32))
    feedback.commit(np.array([1, 0], np.float32))
    update[:] = before[:] = 7
    assert feedback.residual.tolist() == [0, 1]


class Plain:
    """A codec of which nobody knows that it can do all in one pass."""

    def __init__(self, codec):
        self.name, self.wire_id, self.encode, self.decode = codec.name, codec.wire_id, codec.encode, codec.decode


def in_three_steps(feedback, codec, delta, missed):
    update = feedback.compensate(delta, missed)
    blob = codec.encode(update)
    sent = codec.decode(blob, delta.size)
    feedback.commit(sent)
    return blob


def in_one_call(feedback, codec, delta, missed):
    blob = feedback.encode(codec, delta, missed)
    feedback.commit()
    return blob


def check_all_ways_agree(name, deltas, old, **options):
    """With no round missed, one, and more than a residual outlives."""
    ways = [ErrorFeedback(old.size, decay=0.7, drop_after=3, residual=old) for _ in range(3)]
    codec = make_codec(name, **options)
    for missed, delta in zip((0, 1, 4), deltas, strict=True):
        blobs = {
            in_three_steps(ways[0], codec, delta, missed),
            in_one_call(ways[1], codec, delta, missed),
            in_one_call(ways[2], Plain(codec), delta, missed),
        }
        assert len(blobs) == 1
        assert len({way.residual.tobytes() for way in ways}) == 1


@pytest.mark.parametrize("name", codec_names())
@given(pair=deltas_and_residuals())
def test_all_ways_to_an_update_give_the_same_bits(name, pair):
    delta, old = pair
    check_all_ways_agree(name, [delta, -delta[::-1], delta], old)


@pytest.mark.parametrize("name", codec_names())
def test_all_ways_give_the_same_bits_for_a_long_vector(name):
    numbers = np.random.default_rng(2).standard_normal((4, 50_001)).astype(np.float32)
    check_all_ways_agree(name, numbers[1:], numbers[0])


def test_which_codecs_take_one_pass():
    fused = [name for name in codec_names() if isinstance(make_codec(name), FusedCodec)]
    assert {"topk-fp16", "topk-sign", "topk-2bit", "topk-int8"} <= set(fused)
    assert "int8" not in fused


@pytest.mark.parametrize("name", codec_names())
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_bad_input_to_encode_leaves_the_residual_untouched(name, poison):
    feedback = ErrorFeedback(2, residual=np.array([1, 2], np.float32))
    feedback.encode(make_codec(name), np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"delta holds .* at position 1"):
        feedback.encode(make_codec(name), np.array([0, poison], np.float32))
    for wrong, reason in ((np.zeros(3, np.float32), "3 elements, not 2"), (np.zeros(2), "float64"), ([0, 0], "list")):
        with pytest.raises(ValueError, match=reason):
            feedback.encode(make_codec(name), wrong)
    with pytest.raises(ValueError, match="rounds_missed"):
        feedback.encode(make_codec(name), np.zeros(2, np.float32), -1)
    assert feedback.residual.tolist() == [1, 2]
    with pytest.raises(RuntimeError, match="nothing to commit"):
        feedback.commit()


@pytest.mark.parametrize("name", codec_names())
def test_overflow_in_encode_is_an_error(name):
    largest = np.array([0, np.finfo(np.float32).max], np.float32)
    feedback = ErrorFeedback(2, residual=largest)
    with pytest.raises(ValueError, match="with its residual holds inf at position 1"):
        feedback.encode(make_codec(name), largest)
    assert feedback.residual.tolist() == largest.tolist()


@pytest.mark.parametrize("name", codec_names())
def test_encode_holds_the_rest_back_until_commit(name):
    feedback = ErrorFeedback(3, residual=np.array([0, 1, 2], np.float32))
    delta = np.array([1, 1, 8], np.float32)
    blob = feedback.encode(make_codec(name), delta)
    assert feedback.residual.tolist() == [0, 1, 2]
    feedback.rollback()
    with pytest.raises(RuntimeError, match="nothing to commit"):
        feedback.commit()
    assert feedback.encode(make_codec(name), delta) == blob
    with pytest.raises(TypeError, match="nothing after encode"):
        feedback.commit(delta)
    feedback.commit()
    sent = make_codec(name).decode(blob, 3).to_dense()
    assert feedback.residual.tolist() == (np.array([1, 2, 10], np.float32) - sent).tolist()
    with pytest.raises(RuntimeError, match="nothing to commit"):
        feedback.commit()
    feedback.compensate(delta)
    with pytest.raises(TypeError, match="what was sent after compensate"):
        feedback.commit()


@pytest.mark.parametrize(
    "settings", [{"decay": 1.1}, {"decay": float("nan")}, {"drop_after": -1}, {"residual": np.zeros(3, np.float32)}]
)
def test_wrong_settings(settings):
    with pytest.raises(ValueError):  # noqa: PT011 - each has its own words
        ErrorFeedback(2, **settings)
    with pytest.raises(ValueError, match="at least one"):
        ErrorFeedback(0)
    with pytest.raises(ValueError, match="3 elements, not 2"):
        ErrorFeedback(2).compensate(np.zeros(3, np.float32))
    feedback = ErrorFeedback(2)
    feedback.compensate(np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="3 elements, not 2"):
        feedback.commit(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="rounds_missed"):
        feedback.compensate(np.zeros(2, np.float32), rounds_missed=-1)


@pytest.mark.parametrize("name", codec_names())
def test_the_scale_shrinks_the_residual_and_not_the_delta(name):
    delta, residual = np.random.default_rng(2).standard_normal((2, 500)).astype(np.float32)
    feedback = ErrorFeedback(500, residual=residual, decay=0.5)
    blob = feedback.encode(make_codec(name), delta, rounds_missed=1, scale=0.5)
    feedback.commit()
    left = make_codec(name).decode(blob, 500).to_dense() + feedback.residual
    np.testing.assert_allclose(left, delta + 0.25 * residual, atol=1e-5)
    with pytest.raises(ValueError, match="scale is a number from 0 to 1"):
        feedback.encode(make_codec(name), delta, scale=1.5)
