"""A model of transformers as a session: reading in pieces is reading at once, and what the twin in numpy says."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_glm import NumpyGlm
from safetensors.numpy import load_file
from saved_models import save_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.release import load_release
from fedglm.autoglm.models.session import TorchSession
from fedglm.inference.errors import InferenceError

torch.set_num_threads(1)
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""float32 sums of some hundred products in another order; the logits here are of order 1 to 10."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return {name: save_model(name, home / name) for name in ("language", "texts")}


@pytest.fixture(scope="module")
def sessions(folders):
    """Each kind's session and its twin in numpy."""
    made = {}
    for name, folder in folders.items():
        model, _ = load_release(folder)
        config = json.loads((folder / "config.json").read_text())
        made[name] = (TorchSession(model), NumpyGlm(load_file(folder / "model.safetensors"), config))
    return made


@pytest.fixture(scope="module")
def others():
    """Causal models that count positions in other ways: learned ones, and a window."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    gpt2 = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=32, **sizes))
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    mistral = MistralForCausalLM(
        MistralConfig(num_key_value_heads=1, head_dim=8, sliding_window=4, max_position_embeddings=32, **shape, **sizes)
    )
    return [TorchSession(model.eval()) for model in (gpt2, mistral)]


def tokens(seed, *shape, vocab=50):
    return np.random.default_rng(seed).integers(3, vocab, shape)


@given(st.sampled_from(["language", "texts"]), st.integers(0, 99), st.data())
@settings(max_examples=20)
def test_logits_are_the_twins_wherever_they_are_wanted(sessions, name, seed, data):
    ours, twin = sessions[name]
    batch, size, split = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 12)), data.draw(st.integers(1, 11))
    ids = tokens(seed, batch, size, vocab=250)
    at = np.random.default_rng(seed).integers(0, size, (batch, data.draw(st.integers(1, 3))))
    expected = twin.run(ids, logits_at=at)[0]
    np.testing.assert_allclose(ours.run(ids, logits_at=at)[0], expected, **CLOSE)
    # The same tokens in two pieces, over a cache.
    if split < size:
        _, cache = ours.run(ids[:, :split])
        last = twin.run(ids)[0]
        np.testing.assert_allclose(ours.run(ids[:, split:], cache)[0], last, **CLOSE)
        assert cache.length == split, "a cache never changes"
        np.testing.assert_allclose(ours.run(ids[:, split:], cache)[0], last, **CLOSE)


@given(st.integers(0, 99), st.lists(st.integers(1, 8), min_size=2, max_size=4))
@settings(max_examples=20)
def test_padding_on_the_left_changes_nothing(sessions, seed, lengths):
    ours, twin = sessions["language"]
    texts, steps = [tokens(seed + i, length, vocab=250) for i, length in enumerate(lengths)], 3
    longest = max(lengths)
    ids, mask = np.full((len(texts), longest), 255), np.zeros((len(texts), longest), dtype=bool)
    for i, text in enumerate(texts):
        ids[i, longest - len(text) :], mask[i, longest - len(text) :] = text, True
    logits, cache = ours.run(ids, mask=mask)
    for step in range(steps):
        alone = [twin.run(text[None])[0][0] for text in texts]
        np.testing.assert_allclose(logits, np.stack(alone), **CLOSE)
        new = tokens(seed + step + 50, len(texts), 1, vocab=250)
        texts = [np.append(text, own) for text, own in zip(texts, new, strict=True)]
        mask = np.pad(mask, ((0, 0), (0, 1)), constant_values=True)
        logits, cache = ours.run(new, cache, mask=mask)
    with pytest.raises(InferenceError, match="holds padding") if min(lengths) < longest else nullcontext():
        ours.run(new, cache)


def test_caches_are_selected_and_truncated(sessions):
    ours, _ = sessions["language"]
    ids, more = tokens(1, 3, 6, vocab=250), tokens(2, 2, 2, vocab=250)
    _, cache = ours.run(ids)
    rows = np.array([2, 0])
    expected = ours.run(np.concatenate((ids[rows, :4], more), axis=1))[0]
    logits, longer = ours.run(more, cache.select(rows).truncate(4))
    np.testing.assert_allclose(logits, expected, **CLOSE)
    assert (cache.length, longer.length) == (6, 6)
    # 2 layers of keys and values of 2 heads of 16 float32, 6 positions, 3 sequences.
    assert cache.nbytes() == 2 * 2 * 2 * 16 * 4 * 6 * 3
    with pytest.raises(InferenceError, match="cannot be cut to 7"):
        cache.truncate(7)


def test_other_causal_models_agree_with_themselves(others):
    for session in others:
        ids = tokens(3, 2, 12)
        whole = session.run(ids, logits_at=np.arange(12)[None].repeat(2, 0))[0]
        theirs = session._model(torch.from_numpy(ids)).logits.detach().numpy()
        np.testing.assert_allclose(whole, theirs, **CLOSE)
        logits, cache = session.run(ids[:, :5])
        for position in range(5, 12):
            np.testing.assert_allclose(logits[:, 0], whole[:, position - 1], **CLOSE)
            logits, cache = session.run(ids[:, position : position + 1], cache)
        padded = np.concatenate((np.zeros((2, 3), dtype=np.int64), ids), axis=1)
        mask = np.arange(15)[None].repeat(2, 0) >= 3
        np.testing.assert_allclose(session.run(padded, mask=mask)[0], whole[:, -1:], **CLOSE)


def test_a_classifier_that_is_not_causal_reads_whole_sequences():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = BertForSequenceClassification(BertConfig(vocab_size=50, num_labels=3, **shape)).eval()
    session, ids = TorchSession(model), tokens(1, 2, 6)
    logits, cache = session.run(ids, logits_at=np.array([[5], [3]]))
    alone = [model(torch.from_numpy(own[None])).logits.detach().numpy() for own in (ids[0], ids[1, :4])]
    np.testing.assert_allclose(logits, np.stack(alone), **CLOSE)
    with pytest.raises(InferenceError, match="whole sequences only"):
        session.run(ids, cache)
    with pytest.raises(InferenceError, match="asked for several"):
        session.run(ids, logits_at=np.array([[5, 4], [3, 2]]))


def test_a_model_without_keys_and_values_cannot_generate():
    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4))
    with pytest.raises(ModelError, match="a mamba model keeps no keys and values"):
        TorchSession(model)


def test_what_does_not_fit_the_model_is_refused(sessions):
    ours, _ = sessions["language"]
    ids = tokens(1, 2, 4)
    _, cache = ours.run(ids)
    with pytest.raises(InferenceError, match="tokens run from 3 to 256, and the model has 256"):
        ours.run(np.array([[3, 256]]))
    with pytest.raises(InferenceError, match="not int32"):
        ours.run(ids.astype(np.int32))
    with pytest.raises(InferenceError, match="1025 tokens are more than the 1024"):
        ours.run(tokens(1, 1, 1025))
    with pytest.raises(InferenceError, match="of 2 sequences, and there are 3"):
        ours.run(tokens(1, 3, 1), cache)
    with pytest.raises(InferenceError, match=r"mask is bool of shape \(2, 5\)"):
        ours.run(ids[:, :1], cache, mask=np.ones((2, 4), dtype=bool))
    with pytest.raises(InferenceError, match="from 0 to 3"):
        ours.run(ids, logits_at=np.array([[4], [0]]))
    with pytest.raises(InferenceError, match="not one of this session's"):
        ours.run(ids, object())
