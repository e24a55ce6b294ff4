"""What texts begin with is read once: within a call, between calls, and the tokens stay those of texts read whole."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_session import ScriptedSession
from tiny_lite_models import Recorded, make_model, make_texts, open_graph

from fedglm.inference.generation.decoding import decode
from fedglm.inference.generation.prompts import MIN_REUSED, count_shared
from fedglm.inference.generation.sampling import Sampling
from fedglm.inference.runtime.prefix_cache import PrefixCache

VOCAB = 6
BEGINNINGS = st.lists(st.integers(0, 2), min_size=9, max_size=20)
ENDINGS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), min_size=1, max_size=4)
INSTRUCTION = "answer the question in one word "


def write(session, prompts, prefixes, max_tokens=5):
    """Tokens of each text, and why it ended."""
    sampling, texts = Sampling(), [[] for _ in prompts]
    for event in decode(
        session,
        [np.array(prompt, dtype=np.int64) for prompt in prompts],
        sampling=sampling,
        generators=sampling.generators(len(prompts)),
        max_tokens=max_tokens,
        end_ids=frozenset({1}),
        pad_id=0,
        vocab_size=VOCAB,
        prefixes=prefixes,
    ):
        texts[event.row].append(event.stop if event.token is None else event.token)
    return texts


@given(BEGINNINGS, st.lists(ENDINGS, min_size=1, max_size=3), st.sampled_from([0, 500, 10**6]))
def test_texts_with_one_beginning_are_those_written_alone(beginning, calls, max_bytes):
    session, prefixes = ScriptedSession(outputs=VOCAB), PrefixCache(max_bytes)
    for endings in calls:
        prompts = [beginning + ending for ending in endings]
        alone = [write(ScriptedSession(outputs=VOCAB), [prompt], PrefixCache(0))[0] for prompt in prompts]
        assert write(session, prompts, prefixes) == alone
        assert prefixes.nbytes <= max_bytes


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=1, max_size=4))
def test_the_last_token_of_each_is_never_shared(prompts):
    count = count_shared([np.array(prompt) for prompt in prompts])
    assert count < min(map(len, prompts))
    assert all(prompt[:count] == prompts[0][:count] for prompt in prompts)
    assert count == min(map(len, prompts)) - 1 or len({prompt[count] for prompt in prompts}) > 1


def test_a_shared_beginning_is_read_once_and_is_known_to_the_next_call():
    session, prefixes = ScriptedSession(outputs=VOCAB), PrefixCache(10**6)
    beginning = [2] * 10
    write(session, [[*beginning, 3, 3], [*beginning, 4]], prefixes, max_tokens=1)
    assert session.runs == [(1, 10), (2, 2)]
    write(session, [[*beginning, 4, 4, 4], [*beginning, 5]], prefixes, max_tokens=1)
    assert session.runs[2:] == [(2, 3)]
    write(session, [[*beginning, 5, 5]], prefixes, max_tokens=1)
    assert session.runs[3:] == [(1, 2)]
    assert prefixes.reused == 20


def test_a_text_is_known_with_what_was_written_behind_it():
    session, prefixes = ScriptedSession(outputs=VOCAB, score=lambda _: np.eye(VOCAB)[2]), PrefixCache(10**6)
    write(session, [[3] * 9], prefixes, max_tokens=4)
    assert session.runs == [(1, 9), (1, 1), (1, 1), (1, 1)]
    write(session, [[3] * 9 + [2] * 4 + [5]], prefixes, max_tokens=1)
    assert session.runs[4:] == [(1, 2)], "the last token that was written had not been read"


def test_a_few_tokens_are_not_worth_it():
    session, prefixes = ScriptedSession(outputs=VOCAB), PrefixCache(10**6)
    few = [2] * (MIN_REUSED - 1)
    write(session, [[*few, 3], [*few, 4, 4]], prefixes, max_tokens=1)
    write(session, [[*few, 3, 3]], prefixes, max_tokens=1)
    write(session, [[*few, 4, 3]], prefixes, max_tokens=1)
    assert session.runs == [(2, MIN_REUSED + 1), (1, MIN_REUSED + 1), (1, MIN_REUSED + 1)]


@pytest.mark.parametrize("together", [False, True])
def test_the_same_greedy_tokens_on_onnx_runtime_with_fewer_read(together):
    """Bits are not the same: sums of another order; tokens are, where none are tied within that."""
    texts = make_texts(12, most=8, begin=INSTRUCTION)
    expected = make_model(cache_bytes=0).generate(texts[:1], 12) + [
        make_model(cache_bytes=0).generate(text, 12) for text in texts[1:]
    ]
    session = Recorded(open_graph())
    model = make_model(session=session)
    found = model.generate(texts, 12) if together else [model.generate(text, 12) for text in texts]
    assert found == expected
    read = sum(batch * tokens for batch, tokens in session.runs if tokens > 1)
    whole = sum(len(text) + 1 for text in texts)
    assert read < whole / 2
    kept = model.info()["kept"]
    assert kept["prefixes"] >= 1
    assert kept["tokens_reused"] == 0 if together else kept["tokens_reused"] >= 11 * len(INSTRUCTION)


def test_logits_behind_a_known_beginning_are_those_of_the_whole():
    session = open_graph()
    ids = np.random.default_rng(0).integers(0, 64, (1, 40))
    whole, _ = session.run(ids)
    for length in (1, 8, 39):
        _, cache = session.run(ids[:, :length])
        behind, _ = session.run(ids[:, length:], cache)
        # Sums of at most 64 products in float32, in 6 linears and 2 attentions, one behind the other.
        assert np.abs(behind - whole).max() <= 8 * 64 * 2**-24 * np.abs(whole).max()


def test_both_halves_of_the_bound_hold_and_none_keeps_nothing():
    model = make_model(cache_bytes=20_000)
    for text in make_texts(40, begin=INSTRUCTION):
        model.generate(text, 5)
        kept = model.info()["kept"]
        assert max(kept["answer_bytes"], kept["prefix_bytes"]) <= 10_000
    assert min(kept["answers"], kept["prefixes"]) > 0
    unkept = make_model(cache_bytes=0)
    unkept.generate("aaaaaaaaaaaaaaaaaaaa")
    unkept.generate("aaaaaaaaaaaaaaaaaaaab")
    assert set(unkept.info()["kept"].values()) == {0}


def test_a_stream_that_is_left_has_remembered_its_prompt():
    session = Recorded(open_graph())
    model = make_model(session=session)
    pieces = model.stream(INSTRUCTION + "a", 9)
    next(pieces)
    pieces.close()
    list(model.stream(INSTRUCTION + "b", 1))
    assert session.runs[-1] == (1, 1)
