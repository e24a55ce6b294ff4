"""Sequences in a cut vocabulary, and the loss of the same text in it."""

import math

import numpy as np
import pytest
import torch
from prunable_glms import byte_examples, small_glm
from small_tasks import text_task

from fedglm.autoglm.data.records import Records
from fedglm.autoglm.light.pruning.vocabulary import VocabularySettings, cut_vocabulary
from fedglm.autoglm.light.search.measures import measure_loss, measure_quality
from fedglm.autoglm.light.search.tokens import count_unknown, map_tokens


@pytest.fixture(scope="module")
def cut():
    task = text_task()
    model = small_glm(task)
    texts = ["the quick brown fox jumps over the lazy dog"]
    return task, model, cut_vocabulary(model, task, texts, VocabularySettings(keep_alphabet=False))


def encode(task, *texts):
    return task.examples(Records(texts=list(texts), units=[str(row) for row in range(len(texts))], labels=[]))[0]


def test_mapped_sequences_are_those_of_the_cut_tokenizer(cut):
    task, _, vocabulary = cut
    texts = ("the dog jumps", "a lazy fox")
    mapped, encoded = map_tokens(encode(task, *texts), task, vocabulary), encode(vocabulary.task, *texts)
    assert torch.equal(mapped.lengths, encoded.lengths)
    for row, length in enumerate(mapped.lengths.tolist()):
        assert torch.equal(mapped.input_ids[row, :length].long(), encoded.input_ids[row, :length].long())


def test_what_cannot_be_spelled_is_counted(cut):
    task, _, vocabulary = cut
    mapped = map_tokens(encode(task, "the DOG", "fox"), task, vocabulary)
    assert count_unknown(mapped, vocabulary).tolist() == [3, 0]


def test_without_a_cut_nothing_changes(cut):
    task, *_ = cut
    examples = encode(task, "the DOG")
    assert map_tokens(examples, task, None) is examples
    assert not count_unknown(examples, None).any()


def test_unknown_tokens_cost_the_choice_among_what_went(cut):
    """The cut model is then a distribution over the whole vocabulary, and its loss that of the same text."""
    task, _, vocabulary = cut
    examples = encode(task, "the dog JUMPS over", "foxes")
    measured = measure_loss(vocabulary.model, task, examples, vocabulary)
    mapped = map_tokens(examples, task, vocabulary)
    with torch.no_grad():
        logits = vocabulary.model(input_ids=mapped.input_ids.long()).logits.double()
    gone = vocabulary.rows - int((vocabulary.kept >= 0).sum())
    nats = predicted = 0.0
    for row, length in enumerate(mapped.lengths.tolist()):
        for at in range(1, length):
            token = int(mapped.input_ids[row, at])
            nats -= float(logits[row, at - 1].log_softmax(-1)[token])
            nats += math.log(gone) if token == vocabulary.unknown_id else 0.0
            predicted += 1
    assert measured.loss == pytest.approx(nats / predicted, rel=1e-5)
    assert measured.unknown == 5


def test_a_model_is_no_distance_from_itself():
    task, model = text_task(), small_glm(text_task())
    examples = byte_examples(6)
    quality = measure_quality(model, task, examples, dense=model)
    assert (quality.kl_mean, quality.kl_99, quality.agreement) == (0.0, 0.0, 1.0)
    assert quality.loss == pytest.approx(task.evaluate(model, examples).loss, rel=1e-6)


def test_the_divergence_is_of_the_dense_distribution():
    task = text_task()
    dense, other = small_glm(task, seed=0), small_glm(task, seed=1)
    examples = byte_examples(4)
    quality = measure_quality(other, task, examples, dense=dense)
    real = np.arange(examples.input_ids.shape[1]) < examples.lengths.numpy()[:, None]
    with torch.no_grad():
        ours, theirs = (
            model(input_ids=examples.input_ids.long()).logits.double().log_softmax(-1)[:, :-1]
            for model in (other, dense)
        )
    each = (theirs.exp() * (theirs - ours)).sum(-1)[torch.from_numpy(real[:, 1:])]
    assert quality.kl_mean == pytest.approx(float(each.mean()), rel=1e-5)
    assert quality.kl_99 == pytest.approx(float(each.sort().values[math.ceil(0.99 * len(each)) - 1]), rel=1e-5)
