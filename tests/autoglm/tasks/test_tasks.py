"""Tasks: what ``task.json`` holds of each kind, byte for byte as earlier versions wrote it, and what is learned."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedglm.autoglm.data.bins import bins_from_ranges
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.tasks.classification import TabularClassification, TextClassification
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.reading import read_task

TABLE = bins_from_ranges({"age": (0.0, 90.0), "dose": (0.0, 3.0)}, 3)
LANGUAGE = LanguageModeling.for_texts(None, length=16)
TEXTS = TextClassification.for_texts(None, length=16, labels=("ill", "well"))
ROWS = TabularClassification.for_table(TABLE, ("ill", "well"))
TASKS = pytest.mark.parametrize("task", [LANGUAGE, TEXTS, ROWS], ids=lambda task: task.kind)

BYTES = """{
 "kind": "KIND",
 "length": 16,
 "vocab_size": 256,
 "pad_id": 255,
 "bos_id": 254,
 "eos_id": 253,
 "labels": LABELS,
 "table": null
}"""
TWO = """[
  "ill",
  "well"
 ]"""
WRITTEN = {
    "language-model": BYTES.replace("KIND", "language-model").replace("LABELS", "[]"),
    "text-classification": BYTES.replace("KIND", "text-classification").replace("LABELS", TWO),
    "tabular-classification": """{
 "kind": "tabular-classification",
 "length": 3,
 "vocab_size": 10,
 "pad_id": 9,
 "bos_id": 8,
 "eos_id": 8,
 "labels": [
  "ill",
  "well"
 ],
 "table": {
  "names": [
   "age",
   "dose"
  ],
  "edges": [
   [
    30.0,
    60.0
   ],
   [
    1.0,
    2.0
   ]
  ],
  "origin": "declared ranges"
 }
}""",
}


@TASKS
def test_task_json_is_what_earlier_versions_wrote_and_read(task):
    assert task.to_json() == WRITTEN[task.kind]
    again = read_task(WRITTEN[task.kind])
    assert type(again) is type(task)
    assert again.to_json() == task.to_json()
    assert again.classes == task.classes


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        WRITTEN["language-model"].replace("language-model", "translation"),
        WRITTEN["language-model"].replace("[]", '["a", "b"]'),
        WRITTEN["language-model"].replace("null", '{"names": []}'),
        WRITTEN["text-classification"].replace("null", '{"names": []}'),
        WRITTEN["text-classification"].replace("text-", "tabular-"),
        WRITTEN["tabular-classification"].replace("edges", "bins"),
        WRITTEN["tabular-classification"].replace("30.0", "70.0"),
        WRITTEN["text-classification"].replace("pad_id", "padding"),
        WRITTEN["text-classification"].replace('"table"', '"language": "en", "table"'),
    ],
)
def test_what_is_no_task_is_refused_in_words(text):
    with pytest.raises(DataError, match="not the description of a task"):
        read_task(text)


def test_labels_are_learned_by_classifiers_and_are_groups_to_a_language_model():
    records = Records(texts=["a", "b", "c"], labels=["well", "ill", "well"], units=["p", "q", "p"])
    examples, rows = TEXTS.examples(records)
    assert (examples.labels.tolist(), examples.units.tolist(), rows.tolist()) == ([1, 0, 1], [0, 1, 0], [0, 1, 2])
    assert LANGUAGE.examples(records)[0].labels.tolist() == [1, 0, 1]
    assert LANGUAGE.examples(Records(texts=["a", "b"], units=["p", "q"]))[0].labels.tolist() == [0, 0]
    with pytest.raises(TypeError, match="has a tokenizer"):
        replace(TEXTS, tokenizer=None).examples(records)
    rows = ROWS.examples(Records(values=np.array([[10.0, 2.5]]), labels=["ill"], units=["p"]))[0]
    assert (rows.input_ids.tolist(), rows.labels.tolist()) == ([[0, 6, 8]], [0])


def test_losses_are_means_over_a_sequence_s_own_predictions():
    logits = torch.zeros(2, 3, 256)
    batch = {
        "input_ids": torch.tensor([[5, 6, 7], [5, 255, 255]]),
        "attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]),
    }
    torch.testing.assert_close(LANGUAGE.losses(logits, batch), torch.tensor([np.log(256), 0.0]).float())
    assert not LANGUAGE.is_correct(logits, batch).any()
    scores, labels = torch.tensor([[0.0, 0.0], [0.0, 9.0]]), {"labels": torch.tensor([0, 0])}
    torch.testing.assert_close(TEXTS.losses(scores, labels), torch.tensor([np.log(2), np.log(1 + np.exp(9))]).float())
    assert TEXTS.is_correct(scores, labels).tolist() == [True, False]


@TASKS
def test_evaluations_pool_as_if_made_together(task):
    parts = [task.evaluation(1.0, 0.5, 10), task.evaluation(2.0, 1.0, 30)]
    loss, accuracy = 1.75, 0.875
    assert task.pool(parts) == task.evaluation(loss, accuracy, 40)
    assert task.metric == ("accuracy" if task.classes else "perplexity")
    assert parts[0] == Evaluation(loss=1.0, metric=0.5 if task.classes else np.e, count=10)
    with pytest.raises(DataError, match="no evaluations"):
        task.pool([])


def test_reported_losses_are_cut_at_what_a_model_without_any_idea_has():
    assert pytest.approx(np.log(256)) == LANGUAGE.loss_bound
    assert pytest.approx(np.log(8)) == TEXTS.loss_bound == ROWS.loss_bound
    many = replace(TEXTS, labels=tuple(f"c{number}" for number in range(100)))
    assert many.loss_bound == pytest.approx(np.log(100))
    assert (many.outputs(300), LANGUAGE.outputs(300)) == (100, 300)


def test_bins_alone_start_in_an_order():
    assert LANGUAGE.initial_embeddings(8) is TEXTS.initial_embeddings(8) is None
    rows = ROWS.initial_embeddings(8)
    assert rows.shape == (2 * 4, 8)
    steps = rows.reshape(2, 4, 8)[:, :3].diff(dim=1)
    assert torch.allclose(steps[:, 0], steps[:, 1], atol=1e-6)
