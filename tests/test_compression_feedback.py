import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fedglm.compression.codec import codec_names, make_codec
from fedglm.compression.feedback import ErrorFeedback

floats = st.floats(-(2.0**100), 2.0**100, width=32)
EXACT = tuple(name for name in codec_names() if name != "topk-sign")


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
    update = feedback.compensate(delta)
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
    with pytest.raises(RuntimeError, match="compensate first"):
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


def test_overflow_is_an_error():
    largest = np.array([np.finfo(np.float32).max], np.float32)
    feedback = ErrorFeedback(1, residual=largest)
    with pytest.raises(ValueError, match="with its residual holds inf"):
        feedback.compensate(largest)
    assert feedback.residual.tolist() == largest.tolist()


def test_what_is_handed_out_cannot_be_changed():
    feedback = ErrorFeedback(2)
    delta = np.ones(2, np.float32)
    update = feedback.compensate(delta)
    delta[:] = 7
    for view in (update, feedback.residual):
        assert not view.flags.writeable
    feedback.commit(np.zeros(2, np.float32))
    assert feedback.residual.tolist() == [1, 1]
    assert update.tolist() == [1, 1]


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
