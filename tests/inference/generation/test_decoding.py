"""The decoding loop, over a session whose next token depends on every token so far and on no padding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_session import ScriptedSession

from fedglm.inference.errors import InferenceError
from fedglm.inference.generation.decoding import MAX_BATCH, Stop, decode
from fedglm.inference.generation.sampling import Sampling
from fedglm.inference.runtime.prefix_cache import PrefixCache

VOCAB, END, PAD = 6, 1, 0
PROMPTS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9), min_size=1, max_size=6)


def run(prompts, *, session=None, max_tokens=8, max_length=16, sampling=None, end_ids=(END,), vocab_size=VOCAB):
    sampling = sampling or Sampling()
    session = session or ScriptedSession(outputs=VOCAB, max_length=max_length)
    events = decode(
        session,
        [np.array(prompt, dtype=np.int64) for prompt in prompts],
        sampling=sampling,
        generators=sampling.generators(len(prompts)),
        max_tokens=max_tokens,
        end_ids=frozenset(end_ids),
        pad_id=PAD,
        vocab_size=vocab_size,
        prefixes=PrefixCache(0),
    )
    texts, stops = [[] for _ in prompts], [[] for _ in prompts]
    for event in events:
        assert (event.token is None) != (event.stop is None)
        assert not stops[event.row], "nothing follows the end of a text"
        (texts[event.row] if event.stop is None else stops[event.row]).append(event.token or event.stop or 0)
    assert all(len(own) == 1 for own in stops)
    return list(zip(texts, [own[0] for own in stops], strict=True))


def by_hand(prompt, max_tokens, max_length):
    """One text, all of it read again for every token."""
    session, tokens = ScriptedSession(outputs=VOCAB), list(prompt)
    while True:
        token = int(np.float32(session.hashed(tuple(tokens))).argmax())
        if token == END:
            return tokens[len(prompt) :], Stop.END
        tokens.append(token)
        if len(tokens) - len(prompt) == max_tokens:
            return tokens[len(prompt) :], Stop.MAX_TOKENS
        if len(tokens) == max_length:
            return tokens[len(prompt) :], Stop.MAX_LENGTH


@given(PROMPTS, st.integers(1, 9))
def test_texts_together_are_what_each_is_alone(prompts, max_tokens):
    assert run(prompts, max_tokens=max_tokens) == [by_hand(prompt, max_tokens, 16) for prompt in prompts]


@given(PROMPTS, st.integers(0, 99))
def test_drawn_tokens_do_not_depend_on_the_batch_either(prompts, seed):
    sampling = Sampling.of(temperature=1.0, seed=seed)
    together = run(prompts, sampling=sampling)
    assert together[0] == run(prompts[:1], sampling=sampling)[0]


def test_a_text_is_read_once_and_then_a_token_at_a_time():
    session = ScriptedSession(outputs=VOCAB, score=lambda _: np.eye(VOCAB)[2])
    assert run([[2, 3, 4], [3]], session=session, max_tokens=4) == [([2] * 4, Stop.MAX_TOKENS)] * 2
    assert session.runs == [(2, 3), (2, 1), (2, 1), (2, 1)]


def test_what_has_ended_leaves_the_batch():
    ends = {1: 1, 2: 3}  # by the first token of a text, the number of tokens until it ends

    def score(tokens):
        return np.eye(VOCAB)[END if len(tokens) - 1 == ends[tokens[0]] else 2]

    session = ScriptedSession(outputs=VOCAB, score=score)
    assert run([[1], [2]], session=session) == [([2], Stop.END), ([2] * 3, Stop.END)]
    assert session.runs == [(2, 1), (2, 1), (1, 1), (1, 1)]


def test_many_texts_are_several_batches():
    session = ScriptedSession(outputs=VOCAB, score=lambda _: np.eye(VOCAB)[2])
    run([[2]] * (MAX_BATCH + 3), session=session, max_tokens=1)
    assert session.runs == [(MAX_BATCH, 1), (3, 1)]


def test_tokens_that_the_tokenizer_lacks_are_never_chosen():
    session = ScriptedSession(outputs=VOCAB, score=lambda _: np.arange(VOCAB))
    assert run([[2]], session=session, max_tokens=2, vocab_size=4)[0][0] == [3, 3]


def test_a_text_that_the_model_cannot_take_is_refused():
    with pytest.raises(InferenceError, match="16 tokens, and the model takes 15 at most"):
        run([[2] * 16], max_length=16)
    assert run([[2] * 15], max_length=16, end_ids=())[0][1] is Stop.MAX_LENGTH
    with pytest.raises(InferenceError, match="0 tokens"):
        run([[]])
    with pytest.raises(InferenceError, match="at least 1, not 0"):
        run([[2]], max_tokens=0)
