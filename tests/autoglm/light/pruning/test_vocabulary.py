"""A cut vocabulary: the same logits, the same tokens of public text, and nothing unknown that is not counted."""

import numpy as np
import pytest
import torch
from prunable_glms import SMALL, small_glm
from small_tasks import text_task, word_tokenizer
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import PreTrainedTokenizerFast

from fedglm.autoglm.data.bins import bins_from_ranges
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.light.pruning.errors import PruningError
from fedglm.autoglm.light.pruning.tokenizer_cut import cut_tokenizer
from fedglm.autoglm.light.pruning.vocabulary import VocabularySettings, cut_vocabulary
from fedglm.autoglm.models.release import load_release, save_release
from fedglm.autoglm.tasks.classification import TabularClassification, TextClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling

PUBLIC = ["the cat sat on the mat; the dog barked.", "a cat and a dog, café", "The end </s> is near"]
OTHER = ["Zebras quiz jumping foxes: 12345 ☃", *PUBLIC]
BYTES = VocabularySettings(keep_alphabet=False)
TEXT = "the weather of the northern islands is wetter than the weather of the western ones, and then some " * 20
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
UNKNOWN = {"unk_token": "<unk>"}
ENDS = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}


def trained(kind):
    """A tokenizer of each kind of the library, trained on a little text."""
    special = {"special_tokens": SPECIAL, "vocab_size": 400}
    if kind == "byte-level BPE":
        backend = Tokenizer(token_models.BPE())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(initial_alphabet=alphabet, **special)
        backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 1), add_prefix_space=False)
    elif kind == "WordPiece":
        backend = Tokenizer(token_models.WordPiece(**UNKNOWN))
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**special)
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    elif kind == "WordLevel":
        backend = Tokenizer(token_models.WordLevel(**UNKNOWN))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(**special)
    else:
        backend = Tokenizer(token_models.Unigram())
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        trainer = trainers.UnigramTrainer(**UNKNOWN, **special)
    backend.train_from_iterator([TEXT, *PUBLIC, *OTHER], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **UNKNOWN, **ENDS)


KINDS = pytest.mark.parametrize("kind", ["byte-level BPE", "WordPiece", "WordLevel", "Unigram"])


@KINDS
def test_public_text_keeps_its_tokens_under_new_ids(kind):
    whole = trained(kind)
    used = {number for text in PUBLIC for number in whole(text)["input_ids"]}
    cut = cut_tokenizer(whole, used, keep_alphabet=kind != "WordLevel")
    assert len(cut.kept) < len(whole)
    assert (np.diff(cut.kept) > 0).all()
    for text in PUBLIC:
        new, old = cut.tokenizer(text)["input_ids"], whole(text)["input_ids"]
        assert cut.kept[new].tolist() == old
        assert cut.tokenizer.decode(new) == whole.decode(old)
    assert cut.tokenizer.pad_token_id == list(cut.kept).index(whole.pad_token_id)
    assert cut.tokenizer.eos_token_id == list(cut.kept).index(whole.eos_token_id)


@KINDS
def test_a_cut_tokenizer_is_an_ordinary_one_on_disk(kind, tmp_path):
    whole = trained(kind)
    cut = cut_tokenizer(whole, whole(PUBLIC[0])["input_ids"], keep_alphabet=True)
    cut.tokenizer.save_pretrained(tmp_path)
    again = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in OTHER:
        assert again(text)["input_ids"] == cut.tokenizer(text)["input_ids"]
        assert max(again(text)["input_ids"]) < len(cut.kept)


def test_with_its_alphabet_a_byte_level_tokenizer_spells_every_text():
    whole = trained("byte-level BPE")
    cut = cut_tokenizer(whole, whole(PUBLIC[0])["input_ids"], keep_alphabet=True)
    for text in OTHER:
        assert cut.tokenizer.decode(cut.tokenizer(text)["input_ids"]) == whole.decode(whole(text)["input_ids"])
    ids = cut.tokenizer("northern islands ☃")["input_ids"]
    assert cut.tokenizer.unk_token_id not in ids
    assert len(ids) > len(whole("northern islands ☃")["input_ids"])  # it falls back to shorter tokens


@pytest.mark.parametrize("labels", [(), ("no", "yes")])
def test_a_byte_model_keeps_its_logits(labels, tmp_path):
    task = text_task(labels)
    model = small_glm(task)
    cut = cut_vocabulary(model, task, PUBLIC, BYTES)
    assert cut.task.vocab_size == len(cut.kept) == cut.model.config.vocab_size < 60
    assert cut.kept[-1] == -1
    assert cut.unknown_id == len(cut.kept) - 1
    records = Records(texts=PUBLIC, units=["1", "2", "3"], labels=list(labels[:1]) * 3)
    old, new = task.examples(records)[0], cut.task.examples(records)[0]
    assert np.array_equal(cut.kept[new.input_ids.numpy().astype(int)], old.input_ids.numpy())
    assert torch.equal(old.lengths, new.lengths)
    pair = [each.batch(range(len(old))) for each in (old, new)]
    with torch.no_grad():
        whole = model(input_ids=pair[0]["input_ids"], attention_mask=pair[0]["attention_mask"]).logits
        small = cut.model(input_ids=pair[1]["input_ids"], attention_mask=pair[1]["attention_mask"]).logits
    if not labels:
        real = pair[0]["attention_mask"].bool()
        whole, small = whole[real][:, cut.kept[:-1]], small[real][:, :-1]
    torch.testing.assert_close(small, whole, rtol=1e-5, atol=1e-6)
    save_release(cut.model, cut.task, tmp_path / "m")
    loaded, again = load_release(tmp_path / "m")
    assert (again.vocab_size, again.pad_id, again.eos_id) == (cut.task.vocab_size, cut.task.pad_id, cut.task.eos_id)
    assert torch.equal(again.examples(records)[0].input_ids, new.input_ids)
    left, right = cut.task.evaluate(cut.model, new), again.evaluate(loaded, new)
    assert left.loss == pytest.approx(right.loss, rel=1e-6)
    assert cut.model.config.pad_token_id == cut.task.pad_id
    assert loaded.config.eos_token_id == cut.task.eos_id


def test_bytes_that_public_text_lacks_are_unknown_and_counted():
    task = text_task(length=64)
    cut = cut_vocabulary(small_glm(task), task, PUBLIC, BYTES)
    assert cut.count_unknown(PUBLIC)[0] == 0
    known = set("".join(PUBLIC).encode())
    lacking = sum(byte not in known for byte in OTHER[0].encode())
    assert lacking > 0
    total = len(OTHER[0].encode()) + 2
    assert cut.count_unknown([OTHER[0]]) == (lacking, total)
    assert f"{lacking} of {total} tokens unknown" in cut.describe([OTHER[0]])
    rows = cut.model.model.embed_tokens.weight
    gone = sorted(set(range(256)) - set(cut.kept.tolist()))
    whole = small_glm(task).model.embed_tokens.weight
    torch.testing.assert_close(rows[-1], whole[gone].mean(0))
    assert cut.model.lm_head.weight is rows


def test_an_untied_model_is_cut_on_both_sides_and_rare_tokens_may_go():
    task = text_task()
    model = small_glm(task, tied=False)
    cut = cut_vocabulary(model, task, PUBLIC, BYTES)
    rare = cut_vocabulary(model, task, PUBLIC, VocabularySettings(keep_alphabet=False, min_count=2))
    assert cut.model.lm_head.weight.shape == (len(cut.kept), SMALL.hidden)
    assert torch.equal(cut.model.lm_head.weight[:-1], model.lm_head.weight[cut.kept[:-1]])
    assert len(rare.kept) < len(cut.kept)
    assert rare.count_unknown(PUBLIC)[0] > 0


def test_a_tokenizer_of_words_is_cut_with_its_model():
    words = word_tokenizer({"pad_token": "[PAD]", "sep_token": "[SEP]", "cls_token": "[CLS]"})
    ids = {"length": 24, "vocab_size": len(words), "pad_id": 0, "bos_id": 2, "eos_id": 3, "tokenizer": words}
    task = TextClassification(labels=("no", "yes"), **ids)
    cut = cut_vocabulary(small_glm(task), task, ["the a b", "of what"], VocabularySettings(keep_alphabet=False))
    assert cut.count_unknown(["the z what"]) == (1, 3)
    assert cut.task.tokenizer.unk_token_id == cut.unknown_id
    assert -1 not in cut.kept


def test_what_cannot_be_cut_is_refused():
    task = text_task()
    model = small_glm(task)
    with pytest.raises(PruningError, match="nothing would go"):
        cut_vocabulary(model, task, PUBLIC, VocabularySettings())
    with pytest.raises(PruningError, match="no public texts"):
        cut_vocabulary(model, task, [], BYTES)
    table = TabularClassification.for_table(bins_from_ranges({"a": (0.0, 1.0)}, 4), ("no", "yes"))
    with pytest.raises(PruningError, match="bins"):
        cut_vocabulary(small_glm(table), table, PUBLIC, BYTES)
    assert isinstance(task, LanguageModeling)
