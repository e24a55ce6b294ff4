"""A model is found and opened wherever it lies, and does in use what it did in training."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from saved_models import CLASSES, save_model, tasks
from transformers import AutoModelForCausalLM

from fedglm.autoglm.data.records import Records
from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.models.opening import find_model, open_model
from fedglm.autoglm.models.release import load_release
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.byte_tokenizer import EOS_ID

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    return {name: save_model(name, home / name) for name in tasks()}


def test_a_run_leads_to_its_model(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders["table"], run / "model")
    with pytest.raises(ModelError, match="holds no model"):
        find_model(run)
    (run / "scenario.toml").touch()
    found = find_model(run)
    assert (found.path, found.run, found.format) == (run / "model", run, "transformers")
    assert found.task.labels == CLASSES
    assert find_model(run / "model").run is None
    assert open_model(str(run)).info()["labels"] == list(CLASSES)
    shutil.rmtree(run / "model")
    with pytest.raises(ModelError, match="the run has no model yet"):
        find_model(run)


def test_a_manifest_makes_a_release_light(folders, tmp_path):
    shutil.copy(folders["table"] / "task.json", tmp_path / "task.json")
    (tmp_path / "manifest.json").touch()
    assert find_model(tmp_path).format == "light"


def test_what_is_no_model_is_named(folders, tmp_path):
    with pytest.raises(ModelError, match="there is no such folder"):
        find_model(tmp_path / "none")
    with pytest.raises(ModelError, match=r"config\.json or manifest\.json is missing"):
        find_model(tmp_path)
    shutil.copy(folders["table"] / "config.json", tmp_path / "config.json")
    with pytest.raises(ModelError, match=r"no task\.json"):
        find_model(tmp_path)
    (tmp_path / "task.json").write_text("{}")
    with pytest.raises(InferenceError, match="kind is missing"):
        find_model(tmp_path)
    shutil.copy(folders["table"] / "task.json", tmp_path / "task.json")
    with pytest.raises(ModelError, match="no model could be loaded"):
        open_model(tmp_path)


def test_cached_decoding_is_the_plain_forward(folders):
    """Greedy tokens of several texts together, against the whole text read again for each token."""
    model, plain = open_model(folders["language"]), AutoModelForCausalLM.from_pretrained(folders["language"]).eval()
    texts, seen = ["The assert statement", "ß", "", "x" * 33], set()
    for text, answer in zip(texts, model.answer(texts, 24), strict=True):
        ids, expected = model.inputs.encode_prompt(text).tolist(), []
        for _ in range(24):
            with torch.no_grad():
                token = int(plain(torch.tensor([ids + expected])).logits[0, -1].argmax())
            if token == EOS_ID:
                break
            expected.append(token)
        assert list(answer.tokens) == expected
        seen.update(expected)
    assert len(seen) > 5, "a model that says one thing proves nothing"


def test_classes_are_those_of_the_evaluation_in_training(folders):
    texts = ["slept all night", "coughs", "37.2 °C " * 9, "?", "slept all night"]
    values = np.array([[20, 36], [90, 42], [np.nan, 38], [50, np.nan], [20, 36]])
    for name, rows in (("texts", texts), ("table", values.tolist())):
        plain, task = load_release(folders[name])
        records = Records(labels=["ill"] * 5, units=list("abcde"))
        records.texts, records.values = texts, values
        batch = task.examples(records)[0].batch(range(5))
        with torch.no_grad():
            logits = plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        predictions = open_model(folders[name]).predict(rows)
        found = np.array([list(prediction.probabilities.values()) for prediction in predictions])
        # float32 sums in another order.
        np.testing.assert_allclose(found, logits.double().softmax(-1).numpy(), atol=1e-5)
        assert [CLASSES.index(prediction.label) for prediction in predictions] == logits.argmax(-1).tolist()
        assert len({prediction.label for prediction in predictions}) > 1


def test_a_model_with_more_outputs_than_tokens_says_only_what_can_be_spelled(folders, tmp_path):
    wide = AutoModelForCausalLM.from_pretrained(folders["language"])
    wide.resize_token_embeddings(300, mean_resizing=False)
    with torch.no_grad():
        wide.get_input_embeddings().weight[256:] = 10 * wide.get_input_embeddings().weight[65]
    wide.save_pretrained(tmp_path)
    for name in ("task.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["language"] / name, tmp_path / name)
    answer = open_model(tmp_path).answer(["x"], 20)[0]
    assert answer.tokens
    assert max(answer.tokens) < 256


def test_end_tokens_of_the_configuration_end_a_text(folders, tmp_path):
    folder = shutil.copytree(folders["language"], tmp_path / "model")
    first = open_model(folder).answer(["x"], 5)[0].tokens[0]
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": [first, 7]}))
    answer = open_model(folder).answer(["x"], 5)[0]
    assert (answer.tokens, answer.stop) == ((), "end")
