"""LiteModel over a scripted session: what it reads, answers and keeps; without torch."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scripted_session import ScriptedSession

from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID
from fedglm.inference.inputs.model_inputs import open_inputs
from fedglm.inference.model import LiteModel
from fedglm.inference.prediction import read_rows, to_probabilities

CLASSES = ["ill", "odd", "well"]
BYTES = {"length": 16, "vocab_size": 256, "pad_id": PAD_ID, "bos_id": BOS_ID, "eos_id": EOS_ID}
TABLE = {"names": ["age", "heat"], "edges": [[30.0, 60.0], [37.0, 39.0]], "origin": "a test"}
TASKS = {
    "language": {"kind": "language-model", **BYTES, "labels": [], "table": None},
    "texts": {"kind": "text-classification", **BYTES, "labels": CLASSES, "table": None},
    # Two features of three bins and a missing value each, then the end and the padding.
    "table": {
        "kind": "tabular-classification",
        "length": 3,
        "vocab_size": 10,
        "pad_id": 9,
        "bos_id": 8,
        "eos_id": 8,
        "labels": CLASSES,
        "table": TABLE,
    },
}


def make(folder, name, session=None, **options):
    (folder / "task.json").write_text(json.dumps(TASKS[name]))
    inputs = open_inputs(folder, {})
    outputs = len(inputs.task.labels) or 256
    session = session or ScriptedSession(outputs=outputs, vocab_size=inputs.task.vocab_size)
    return LiteModel(session, inputs, facts={"runtime": "a script"}, **options), session


def spell(text):
    """A session that goes on with a text, byte by byte, and then ends."""
    script = text.encode()

    def score(tokens):
        return np.eye(256)[script[done] if (done := len(tokens) - 2) < len(script) else EOS_ID]

    return ScriptedSession(outputs=256, score=score)


def test_a_text_is_continued_until_it_ends(tmp_path):
    model, _ = make(tmp_path, "language", spell("ößt 血圧"))
    assert model.generate("x") == "ößt 血圧"
    (answer,) = model.answer(["x"])
    assert (answer.stop, bytes(answer.tokens)) == ("end", "ößt 血圧".encode())
    assert list(model.stream("x", 5)) == ["ö", "ß", "t"]
    assert model.generate("x", max_length=3) == "ö\N{REPLACEMENT CHARACTER}"
    assert model.generate(["x", "y"]) == ["ößt 血圧"] * 2


def test_the_generators_own_value_is_the_answer(tmp_path):
    model, _ = make(tmp_path, "language", spell("abc"))
    pieces = model.stream("x", 2)
    assert [next(pieces), next(pieces)] == ["a", "b"]
    with pytest.raises(StopIteration) as done:
        next(pieces)
    assert done.value.value == model.answer(["x"], 2)[0]
    assert done.value.value.stop == "max-tokens"


def test_what_repeats_is_kept_and_what_is_drawn_anew_is_not(tmp_path):
    model, session = make(tmp_path, "language")
    texts = [model.generate("x", 4, temperature=1, seed=3), *model.generate(["x"], 4, temperature=1, seed=3)]
    texts += ["".join(model.stream("x", 4, temperature=1, seed=3))]
    assert len(set(texts)) == 1
    assert len(session.runs) == 4
    model.generate("x", 4, temperature=1, seed=4)
    model.generate("x", 4, temperature=1, seed=3, top_k=9)
    model.generate("x", 5, temperature=1, seed=3)
    assert len(session.runs) == 17
    for _ in range(2):  # of one token alone to draw from, as another could end the text
        model.generate("x", 4, temperature=1, top_k=1)
    assert len(session.runs) == 25
    # Of two texts, the one that is known is not read again.
    model.generate("y", 4)
    model.generate(["y", "z"], 4)
    assert session.runs[-4:] == [(1, 2), (1, 1), (1, 1), (1, 1)]
    unkept, session = make(tmp_path, "language", cache_bytes=0)
    assert unkept.generate("x", 4) == unkept.generate("x", 4)
    assert len(session.runs) == 8


def test_rows_of_a_table_are_read_in_every_form(tmp_path):
    model, session = make(tmp_path, "table")
    forms = [{"heat": "38", "age": 20, "name": "x"}, [20, 38], (20.0, 38.0), {"age": "20 ", "heat": 38}]
    predictions = model.predict(forms)
    assert session.runs == [(1, 3)], "equal rows are read once"
    assert all(prediction == predictions[0] for prediction in predictions)
    missing = model.predict([{"age": None, "heat": ""}, [float("nan"), None]])
    assert missing[0] == missing[1] != predictions[0]
    expected = np.exp(session.hashed((0, 5, 8)))
    assert list(predictions[0].probabilities) == CLASSES
    assert list(predictions[0].probabilities.values()) == pytest.approx(expected / expected.sum(), rel=1e-6)
    assert predictions[0].label == CLASSES[int(expected.argmax())]
    assert predictions[0].to_dict() == {
        "label": predictions[0].label,
        "probabilities": predictions[0].probabilities,
    }


def test_texts_of_all_lengths_are_read_at_their_own_end(tmp_path):
    model, session = make(tmp_path, "texts")
    texts = ["", "x" * 40, "short", "血圧は正常です", {"text": "short"}]
    predictions = model.predict(texts[1:])
    assert [prediction.is_cut for prediction in predictions] == [True, False, True, False]
    for text, prediction in zip(["x" * 15, "short"], predictions[:2], strict=True):
        expected = np.exp(session.hashed((*text.encode(), EOS_ID)))
        assert list(prediction.probabilities.values()) == pytest.approx(expected / expected.sum(), rel=1e-6)
    assert model.predict([{"note": "short"}], text_field="note")[0] == predictions[1]


def test_batches_are_bounded_in_tokens():
    session = ScriptedSession(outputs=2, vocab_size=10, max_length=4096)
    rows = [np.full(length, 3) for length in (2048, 2048, 2000, 1, 1)]
    read_rows(session, rows, pad_id=9)
    assert session.runs == [(2, 1), (2, 2048), (1, 2048)], "4096 at most, padding included"


def test_probabilities_are_exact_for_great_logits():
    session = ScriptedSession(outputs=2, vocab_size=10, score=lambda _: np.array([1000.0, 999.0]))
    assert to_probabilities(read_rows(session, [np.array([3])], pad_id=9))[0] == pytest.approx([0.7310586, 0.2689414])
    broken = ScriptedSession(outputs=2, vocab_size=10, score=lambda _: np.array([np.nan, 0]))
    with pytest.raises(InferenceError, match="not a number"):
        to_probabilities(read_rows(broken, [np.array([3])], pad_id=9))


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("table", {"age": 3}, "row 2: no field 'heat'; there are: age"),
        ("table", {"age": 3, "heet": 4}, "did you mean 'heet'"),
        ("table", {"age": 3, "heat": "warm"}, "row 2: the feature 'heat' must be a number, not 'warm'"),
        ("table", {"age": 3, "heat": [1]}, r"must be a number, not \[1\]"),
        ("table", [1, 2, 3], "row 2: the model reads rows of 2 features: age, heat"),
        ("table", "a text", "row 2: the model reads rows of 2 features"),
        ("texts", {"note": "x"}, "row 2: no field 'text'"),
        ("texts", " \n", "row 2: the text is blank"),
        ("texts", {"text": None}, "row 2: a text is needed, not a NoneType"),
        ("texts", "\ud83d", "half a character"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, name, row, said):
    model, _ = make(tmp_path, name)
    good = [1, 2] if name == "table" else "good"
    with pytest.raises(InferenceError, match=said):
        model.predict([good, row])


def test_the_other_use_is_refused(tmp_path):
    language, _ = make(tmp_path, "language")
    for call in (language.predict, language.classify):
        with pytest.raises(InferenceError, match="is a language model and has no classes to predict: use generate"):
            call([])
    texts, _ = make(tmp_path, "texts")
    for call in (texts.generate, texts.stream):
        with pytest.raises(InferenceError, match="is for text-classification and generates no text: use predict"):
            call("x")


def test_outputs_must_fit_the_task(tmp_path):
    with pytest.raises(InferenceError, match="2 outputs for 3 classes"):
        make(tmp_path, "table", ScriptedSession(outputs=2))
    with pytest.raises(InferenceError, match="255 outputs for 256 tokens"):
        make(tmp_path, "language", ScriptedSession(outputs=255))


def test_a_prompt_that_is_too_long_or_no_text_is_refused(tmp_path):
    model, _ = make(tmp_path, "language")
    with pytest.raises(InferenceError, match="65 tokens, and the model takes 63 at most"):
        model.generate("x" * 64)
    with pytest.raises(InferenceError, match="half a character"):
        model.generate("\udc00")
    assert model.generate("", max_length=2)


def test_info_says_what_is_known(tmp_path):
    assert make(tmp_path, "table")[0].info() == {
        "task": "tabular-classification",
        "max_length": 64,
        "labels": CLASSES,
        "tokens_read": 3,
        "features": ["age", "heat"],
        "vocab_size": 10,
        "kept": {"answers": 0, "answer_bytes": 0, "answers_reused": 0},
        "runtime": "a script",
    }
    assert make(tmp_path, "language")[0].info()["task"] == "language-model"


def test_it_imports_neither_torch_nor_tokenizers():
    code = """
import sys
import fedglm.inference.model, fedglm.autoglm.prediction.files, fedglm.autoglm.models.opening
heavy = {"torch", "transformers", "flwr", "tokenizers", "sklearn", "onnxruntime", "scipy"}
print(sorted(heavy & {name.split(".")[0] for name in sys.modules}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
