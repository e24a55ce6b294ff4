"""Sequences in one run answer as they would alone, whatever their lengths, and however batches form and dissolve."""

import numpy as np
import pytest
from fake_sessions import VOCAB, FakeCache, FakeSession, digest
from hypothesis import given
from hypothesis import strategies as st

from fedglm.inference.batching.requests import Request, run_together
from fedglm.inference.batching.sequence_cache import SequenceCache
from fedglm.inference.errors import InferenceError

tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9)


def request(session, ids, cache=None, logits_at=None):
    logits_at = None if logits_at is None else np.array([logits_at])
    return Request(session, np.array([ids]), cache, logits_at=logits_at, arrived=0.0)


@given(st.lists(tokens, min_size=1, max_size=6), st.data())
def test_beginnings_of_any_lengths_share_a_run(texts, data):
    session = FakeSession()
    wanted = [data.draw(st.none() | st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=4)) for text in texts]
    requests = [request(session, text, logits_at=at) for text, at in zip(texts, wanted, strict=True)]
    for text, at, (logits, cache) in zip(texts, wanted, run_together(session, requests), strict=True):
        assert logits.shape[0] == 1
        assert np.array_equal(logits[0], [digest(text[: i + 1]) for i in at or [len(text) - 1]])
        assert cache.length == len(text)
        assert cache.alone().tokens.tolist() == [text]
    assert session.batches == [len(texts)]


@given(st.data())
def test_sequences_join_and_leave_at_any_step(data):
    session = FakeSession()
    texts, caches = {}, {}
    for step in range(data.draw(st.integers(1, 8))):
        for new in range(data.draw(st.integers(0, 2))):
            texts[step, new], caches[step, new] = [], None
        names = data.draw(st.lists(st.sampled_from(sorted(texts)), unique=True)) if texts else []
        for begun in (False, True):
            batch = [name for name in names if (caches[name] is not None) == begun]
            if not batch:
                continue
            size = data.draw(st.integers(1, 3))
            adds = {
                name: data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=size, max_size=size)) for name in batch
            }
            answers = run_together(session, [request(session, adds[name], caches[name]) for name in batch])
            for name, (logits, cache) in zip(batch, answers, strict=True):
                texts[name] = texts[name] + adds[name]
                caches[name] = cache
                assert np.array_equal(logits[0, 0], digest(texts[name]))
                assert cache.length == len(texts[name])


def decode(session, requests, steps):
    answers = run_together(session, requests)
    for _ in range(steps):
        answers = run_together(session, [request(session, [5], cache) for _, cache in answers])
    return answers


def test_a_batch_that_stays_together_is_not_copied(monkeypatch):
    session = FakeSession()
    answers = run_together(session, [request(session, [1, 2]), request(session, [3, 4, 5])])
    for name in ("select", "skip", "join"):
        monkeypatch.setattr(FakeCache, name, None)
    for _ in range(3):
        answers = run_together(session, [request(session, [5], cache) for _, cache in reversed(answers)])
    assert session.batches == [2] * 4


def test_padding_goes_when_the_longest_leaves():
    session = FakeSession()
    (_, short), _, (_, other) = decode(session, [request(session, [1] * n) for n in (3, 20, 5)], 2)
    answers = run_together(session, [request(session, [2], short), request(session, [2], other)])
    assert answers[0][1].batch.length == 8


def test_equal_lengths_need_no_mask():
    session = FakeSession()
    decode(session, [request(session, [1, 2]), request(session, [3, 4])], 3)
    assert session.masked == 0


def test_one_prefix_begins_several_texts():
    session = FakeSession()
    _, prefix = session.run(np.array([[7, 8, 9]]))
    answers = run_together(session, [request(session, [n], prefix) for n in (1, 2, 3)])
    assert [logits[0, 0].tolist() for logits, _ in answers] == [digest([7, 8, 9, n]).tolist() for n in (1, 2, 3)]
    assert answers[0][1].truncate(3).alone().tokens.tolist() == [[7, 8, 9]]


def test_the_cache_of_a_sequence_is_a_cache_of_one():
    session = FakeSession()
    (_, cache), _ = run_together(session, [request(session, [1, 2]), request(session, [3, 4, 5])])
    assert cache.select(np.array([0])) is cache
    assert cache.join([]) is cache
    assert cache.nbytes() == cache.batch.nbytes() // 2
    assert cache.skip(1).alone().tokens.tolist() == [[2]]
    with pytest.raises(InferenceError, match="one by one"):
        cache.select(np.array([0, 0]))
    with pytest.raises(InferenceError, match="joins them"):
        cache.join([cache])


@pytest.mark.parametrize(
    ("ids", "logits_at", "message"),
    [
        (np.array([1, 2]), None, "one sequence"),
        (np.array([[1], [2]]), None, "one sequence"),
        (np.empty((1, 0), dtype=np.int64), None, "one sequence"),
        (np.array([[1.0]]), None, "one sequence"),
        (np.array([[VOCAB]]), None, "tokens are 0 to 96"),
        (np.array([[-1]]), None, "tokens are 0 to 96"),
        (np.array([[1, 2]]), np.array([[2]]), "2 new tokens"),
        (np.array([[1, 2]]), np.array([[-1]]), "2 new tokens"),
        (np.array([[1, 2]]), np.array([0]), r"\(1, K\)"),
        (np.ones((1, 65), dtype=np.int64), None, "65 tokens are more than the 64"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_alone(ids, logits_at, message):
    with pytest.raises(InferenceError, match=message):
        Request(FakeSession(), ids, None, logits_at=logits_at, arrived=0.0)


def test_a_text_that_fills_the_model_is_refused():
    session = FakeSession()
    full = SequenceCache(FakeCache(np.ones((1, 64), dtype=np.int64)))
    with pytest.raises(InferenceError, match="65 tokens"):
        request(session, [1], full)
