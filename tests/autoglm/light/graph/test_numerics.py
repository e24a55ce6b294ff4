"""The graph computes what torch computes: for each kind of model, with and without a cache, padded, in batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_glms import (
    VOCAB,
    config_of,
    everywhere,
    fill_torch,
    llama_config,
    random_classifier,
    random_glm,
    relative_error,
    small_config,
    tensors_of,
    torch_logits,
    uneven_glm,
    with_codes,
)

from fedglm.autoglm.light.graph.formats import choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.filled_graph import EXACT_ACTIVATIONS
from fedglm.inference.runtime.graph_session import GraphSession

TOLERANCE = 1e-5
"""Of the greatest logit: some 80 roundings of 2**-24 may add up on a path through these models."""

MODELS = {
    "tied": lambda: random_glm(small_config()),
    "untied": lambda: random_glm(small_config(tie_word_embeddings=False)),
    "one head": lambda: random_glm(small_config(num_attention_heads=1, num_key_value_heads=1)),
    "llama": lambda: random_glm(llama_config()),
    "classifier": random_classifier,
}
SCHEMES = {
    "int8, block 128": {"low": -128, "high": 127, "block": 128},
    "int8, one scale a row, zero points": {"low": -128, "high": 127, "block": 1000, "zeros": (-20, 20)},
    "int4, block 32": {"low": -8, "high": 7, "block": 32},
    "unsigned 4 bits": {"low": 0, "high": 15, "block": 64, "zeros": (0, 15)},
    "unsigned 2 bits": {"low": 0, "high": 3, "block": 16, "zeros": (0, 3)},
    "3 bits": {"low": -4, "high": 3, "block": 48},
    "ternary": {"low": -1, "high": 1, "block": 1000},
}


def open_session(tensors, config, kind="fp32"):
    skeleton = build_skeleton(config, choose_formats(tensors, config, kind))
    return GraphSession.open(skeleton, tensors, config, accuracy_level=EXACT_ACTIVATIONS)


def random_ids(batch, length, seed=0):
    return np.random.default_rng(seed).integers(3, VOCAB, (batch, length))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_torch(name):
    model = MODELS[name]()
    ids = random_ids(3, 40)
    logits, cache = open_session(tensors_of(model), config_of(model)).run(ids, logits_at=everywhere(ids))
    assert relative_error(logits, torch_logits(model, ids)) < TOLERANCE
    assert cache.length == 40


def test_layers_may_differ_in_widths_and_heads():
    model, config = uneven_glm()
    ids = random_ids(2, 20)
    session = open_session(tensors_of(model), config)
    logits, cache = session.run(ids[:, :11])
    rest, _ = session.run(ids[:, 11:], cache, logits_at=everywhere(ids[:, 11:]))
    expected = torch_logits(model, ids)
    assert relative_error(logits[:, 0], expected[:, 10]) < TOLERANCE
    assert relative_error(rest, expected[:, 11:]) < TOLERANCE


@pytest.mark.parametrize("kind", ["fp32", "int8", "int4"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_compute_what_their_values_compute(scheme, kind):
    model = random_glm(small_config())
    tensors = with_codes(tensors_of(model), **SCHEMES[scheme])
    expected = torch_logits(fill_torch(model, tensors), ids := random_ids(2, 30))
    logits, _ = open_session(tensors, config_of(model), kind).run(ids, logits_at=everywhere(ids))
    assert relative_error(logits, expected) < TOLERANCE


@pytest.mark.parametrize(
    ("scheme", "kind"), [("int8, block 128", "int8"), ("int4, block 32", "int4"), ("ternary", "int4")]
)
def test_64_greedy_tokens_are_those_of_torch(scheme, kind):
    model = random_glm(small_config())
    tensors = with_codes(tensors_of(model), **SCHEMES[scheme])
    fill_torch(model, tensors)
    session, cache = open_session(tensors, config_of(model), kind), None
    ids = read = random_ids(1, 9)
    with torch.no_grad():
        expected = model.generate(torch.from_numpy(ids), max_new_tokens=64, do_sample=False, eos_token_id=None)
    for _ in range(64):
        logits, cache = session.run(read, cache)
        read = logits.argmax(-1)
        ids = np.concatenate([ids, read], axis=1)
    assert ids.tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_embedding_may_be_half_precision(dtype):
    model = random_glm(small_config(tie_word_embeddings=False))
    tensors = tensors_of(model)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].astype(dtype)
    expected = torch_logits(fill_torch(model, tensors), ids := random_ids(1, 12))
    logits, _ = open_session(tensors, config_of(model)).run(ids, logits_at=everywhere(ids))
    assert relative_error(logits, expected) < TOLERANCE


@pytest.fixture(scope="module")
def reference():
    model = random_glm(small_config())
    return model, open_session(tensors_of(model), config_of(model))


@settings(max_examples=15)
@given(cuts=st.sets(st.integers(1, 29), max_size=6), seed=st.integers(0, 5))
def test_read_in_pieces_is_read_at_once(reference, cuts, seed):
    model, session = reference
    ids, cache, pieces = random_ids(2, 30, seed), None, []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 30], strict=True):
        piece = ids[:, start:end]
        logits, cache = session.run(piece, cache, logits_at=everywhere(piece))
        pieces.append(logits)
    assert relative_error(np.concatenate(pieces, axis=1), torch_logits(model, ids)) < TOLERANCE


@settings(max_examples=15)
@given(padding=st.lists(st.integers(0, 9), min_size=1, max_size=4), seed=st.integers(0, 5))
def test_padding_on_the_left_changes_nothing(reference, padding, seed):
    model, session = reference
    ids = random_ids(len(padding), 16, seed)
    mask = np.arange(16) >= np.array(padding)[:, None]
    ids[~mask] = 0
    logits, cache = session.run(ids[:, :12], mask=mask[:, :12])
    rest, _ = session.run(ids[:, 12:], cache, mask=mask, logits_at=everywhere(ids[:, 12:]))
    assert np.isfinite(np.concatenate(cache.arrays)).all()
    for row, skipped in enumerate(padding):
        alone = torch_logits(model, ids[row : row + 1, skipped:])[0]
        assert relative_error(logits[row, 0], alone[11 - skipped]) < TOLERANCE
        assert relative_error(rest[row], alone[12 - skipped :]) < TOLERANCE


@settings(max_examples=15)
@given(rows=st.lists(st.integers(0, 2), min_size=1, max_size=4), length=st.integers(1, 12))
def test_a_cache_serves_any_of_its_sequences_from_any_position(reference, rows, length):
    model, session = reference
    ids = random_ids(3, 12)
    _, cache = session.run(ids)
    cache = cache.select(np.array(rows)).truncate(length)
    more = random_ids(len(rows), 3, seed=1)
    logits, _ = session.run(more, cache, logits_at=everywhere(more))
    expected = torch_logits(model, np.concatenate([ids[rows, :length], more], axis=1))[:, length:]
    assert relative_error(logits, expected) < TOLERANCE


def test_right_padding_needs_no_mask():
    model = random_classifier()
    ids = random_ids(2, 20)
    logits, _ = open_session(tensors_of(model), config_of(model)).run(ids, logits_at=np.array([[7], [19]]))
    with torch.no_grad():
        short = model(torch.from_numpy(ids[:1, :8])).logits.numpy()
        whole = model(torch.from_numpy(ids[1:])).logits.numpy()
    assert relative_error(logits[:, 0], np.concatenate([short, whole])) < TOLERANCE


@pytest.mark.parametrize("name", ["tied", "llama"])
def test_the_last_position_is_as_exact_as_the_first(name):
    # Rotary angles grow with the position, and with them what one rounding of a frequency does.
    model = MODELS[name]()
    ids = random_ids(1, 128)
    logits, _ = open_session(tensors_of(model), config_of(model)).run(ids, logits_at=everywhere(ids))
    assert relative_error(logits[:, -1], torch_logits(model, ids)[:, -1]) < TOLERANCE


def test_what_does_not_fit_is_named(reference):
    model, session = reference
    ids = random_ids(2, 5)
    _, cache = session.run(ids)
    _, padded = session.run(ids, mask=np.arange(5) >= np.array([[1], [0]]))
    wrong = {
        "int64 of shape": lambda: session.run(ids.astype(np.int32)),
        "vocabulary of 61": lambda: session.run(np.array([[61]])),
        "token -1": lambda: session.run(np.array([[-1, 4]])),
        "129 tokens are more": lambda: session.run(random_ids(1, 129)),
        "positions 0 to 4": lambda: session.run(ids, logits_at=np.array([[5], [0]])),
        "mask is bool": lambda: session.run(ids, mask=np.ones((2, 4), np.bool_)),
        "not of 1 sequences": lambda: session.run(ids[:1], cache),
        "holds padding": lambda: session.run(ids, padded),
        "says otherwise": lambda: session.run(ids, padded, mask=np.ones((2, 10), np.bool_)),
        "5 positions, not 6": lambda: cache.truncate(6),
        "2 sequences": lambda: cache.select(np.array([2])),
    }
    for words, run in wrong.items():
        with pytest.raises(InferenceError, match=words):
            run()
    tensors = tensors_of(model)
    config = config_of(model)
    skeleton = build_skeleton(config, choose_formats(tensors, config, "fp32"))
    for words, other in {
        "no tensor model.norm": {name: value for name, value in tensors.items() if name != "model.norm.weight"},
        r"is \(40,\), and its configuration says \(80,\)": tensors | {"model.norm.weight": np.ones(40, np.float32)},
    }.items():
        with pytest.raises(InferenceError, match=words):
            GraphSession.open(skeleton, other, config)
    formats = choose_formats(with_codes(tensors, low=-8, high=7, block=32), config, "int4")
    skeleton = build_skeleton(config, formats)
    with pytest.raises(InferenceError, match="quantized, but it is not"):
        GraphSession.open(skeleton, tensors, config)
