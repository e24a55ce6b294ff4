"""Tokens without transformers are those with it, for every text; and text that streams is text that was decoded."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as token_models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedglm.autoglm.data.texts import truncate_texts
from fedglm.autoglm.tasks.classification import TextClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID, ByteTokenizer
from fedglm.inference.inputs.library_tokenizer import LibraryTokenizer
from fedglm.inference.inputs.model_inputs import open_inputs, open_task
from fedglm.inference.inputs.tokenizer import decode_all

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
CORPUS = ["The patient slept all night.", "37.2 °C — naïve, Größe, 血圧 正常", "</s> is a tag", "zero  spaces"] * 5


def byte_level(append_end, **settings):
    """As GPT-2's: bytes, merges; a piece of a token may be half a character."""
    inner = Tokenizer(token_models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=["</s>", "<pad>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    if append_end:
        inner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 0)])
    names = {"eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names, **settings)


def sentence_pieces(append_end):
    """As Llama's: a mark for spaces, bytes for what is unknown, a begin token."""
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    unknown = {"unk_token": "<unk>"}
    inner = Tokenizer(token_models.BPE(**unknown))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=160, special_tokens=["<unk>", "<s>", "</s>"]))
    # A trainer knows no bytes: they are put into what it made.
    fields = json.loads(inner.to_str())
    known = fields["model"]["vocab"]
    known |= {piece: len(known) + i for i, piece in enumerate(fallback)}
    fields["model"]["byte_fallback"] = True
    inner = Tokenizer.from_str(json.dumps(fields))
    end = " </s>" if append_end else ""
    inner.post_processor = processors.TemplateProcessing(
        single=f"<s> $A{end}", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def left_cut(append_end):
    return byte_level(append_end, truncation_side="left", split_special_tokens=True)


@pytest.fixture(scope="module", params=[byte_level, sentence_pieces, left_cut])
def pair(request, tmp_path_factory):
    """A tokenizer of transformers, and ours from what it saved; one that ends texts, and one that does not."""
    made = []
    for append_end in (False, True):
        folder = tmp_path_factory.mktemp("tokenizer")
        request.param(append_end).save_pretrained(folder)
        files = [(folder / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")]
        made.append((AutoTokenizer.from_pretrained(folder), LibraryTokenizer(*files)))
    return made


@given(TEXTS)
def test_bytes_are_those_of_training(text):
    whole = TextClassification.for_texts(None, length=16, labels=("a", "b"))
    cut = whole.cut([text], whole.tokenizer, length=16, pad_id=whole.pad_id)
    encoded = ByteTokenizer().encode_whole(text, 16)
    assert encoded.ids.tolist() == cut.ids[0, : cut.lengths[0]].tolist()
    assert encoded.is_cut == (len(text.encode()) > 15)
    document = LanguageModeling.for_texts(None, length=400)
    window = document.cut([text], document.tokenizer, length=400, pad_id=document.pad_id)
    assert [*ByteTokenizer().encode_prompt(text), EOS_ID] == window.ids[0, : window.lengths[0]].tolist()


@given(st.data())
def test_the_librarys_tokens_are_those_of_transformers(pair, data):
    text, length = data.draw(TEXTS), data.draw(st.integers(2, 12))
    for theirs, ours in pair:
        expected = theirs(text, truncation=True, max_length=length)["input_ids"]
        if not expected:
            with pytest.raises(InferenceError, match="no tokens"):
                ours.encode_whole(text, length)
            continue
        cut = truncate_texts([text], theirs, length=length, pad_id=theirs.pad_token_id)
        encoded = ours.encode_whole(text, length)
        assert encoded.ids.tolist() == expected == cut.ids[0, : cut.lengths[0]].tolist()
        assert encoded.is_cut == (theirs(text)["input_ids"] != expected)


@given(TEXTS)
def test_a_prompt_is_a_document_that_has_not_ended(pair, text):
    theirs, ours = pair[0]
    begin = [] if theirs.bos_token_id is None else [theirs.bos_token_id]
    plain = theirs(text, add_special_tokens=False)["input_ids"]
    while plain[-1:] == [theirs.eos_token_id]:
        plain = plain[:-1]
    if begin + plain:
        assert [tokenizer.encode_prompt(text).tolist() for _, tokenizer in pair] == [begin + plain] * 2
    else:
        with pytest.raises(InferenceError, match="no token that begins one"):
            ours.encode_prompt(text)


def pieces_of(tokenizer, ids):
    stream = tokenizer.stream()
    return [*(stream.feed(token) for token in ids), stream.finish()]


@given(st.lists(st.integers(0, 255), max_size=30))
def test_streamed_bytes_are_decoded_bytes_whatever_they_are(ids):
    pieces = pieces_of(ByteTokenizer(), ids)
    content = bytes(token for token in ids if token < min(BOS_ID, EOS_ID, PAD_ID))
    assert "".join(pieces) == content.decode(errors="replace") == decode_all(ByteTokenizer(), ids)


@given(TEXTS)
def test_no_piece_ends_within_a_character(text):
    pieces = pieces_of(ByteTokenizer(), ByteTokenizer().encode_prompt(text).tolist())
    assert "".join(pieces) == text, "a half character would be U+FFFD"
    assert pieces[-1] == ""


@given(st.data())
def test_streamed_tokens_of_a_text_are_the_text(pair, data):
    theirs, ours = pair[0]
    ids = theirs(data.draw(TEXTS))["input_ids"]
    assert "".join(pieces_of(ours, ids)) == theirs.decode(ids, skip_special_tokens=True)


@given(st.data())
def test_pieces_of_no_text_are_whole_characters_too(pair, data):
    theirs, ours = pair[0]
    ids = data.draw(st.lists(st.integers(3, ours.vocab_size - 1), max_size=12))
    pieces = pieces_of(ours, ids)
    assert not any(piece.endswith("\N{REPLACEMENT CHARACTER}") for piece in pieces[:-1])
    if "\N{REPLACEMENT CHARACTER}" not in theirs.decode(ids):
        assert "".join(pieces) == theirs.decode(ids, skip_special_tokens=True)


# What lies in a folder.


def describe(folder, **changes):
    task = LanguageModeling.for_texts(None, length=16)
    (folder / "task.json").write_text(json.dumps(json.loads(task.to_json()) | changes))
    return folder


def test_the_byte_tokenizer_needs_no_file_and_is_recognized_by_its_file(tmp_path):
    assert isinstance(open_inputs(describe(tmp_path), {}).tokenizer, ByteTokenizer)
    LanguageModeling.for_texts(None, length=16).save_tokenizer(tmp_path)
    assert isinstance(open_inputs(tmp_path, {}).tokenizer, ByteTokenizer)


def test_end_tokens_are_the_tokenizers_and_the_models(tmp_path):
    describe(tmp_path)
    for own, ends in ((None, {EOS_ID}), (7, {7, EOS_ID}), ([3, 4], {3, 4, EOS_ID})):
        assert open_inputs(tmp_path, {"eos_token_id": own}).end_ids == ends


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (None, None, "tokenizer.json is missing"),
        ("tokenizer.json", "{", "tokenizer.json: not JSON"),
        ("tokenizer.json", "[]", "a JSON object"),
        ("tokenizer.json", "{}", "tokenizer_config.json is missing"),
    ],
)
def test_a_tokenizer_that_cannot_be_used_is_named(tmp_path, name, content, said):
    describe(tmp_path, vocab_size=300)
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(InferenceError, match=said):
        open_inputs(tmp_path, {})


def test_a_file_that_is_no_tokenizer_is_named(tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InferenceError, match=r"tokenizer\.json: no tokenizer"):
        open_inputs(describe(tmp_path, vocab_size=300), {})


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    byte_level(False).save_pretrained(tmp_path)
    describe(tmp_path, vocab_size=300)
    with pytest.raises(InferenceError, match="320 tokens, the task 300"):
        open_inputs(tmp_path, {})
    (tmp_path / "tokenizer_config.json").unlink()
    describe(tmp_path, vocab_size=320)
    with pytest.raises(InferenceError, match=r"tokenizer_config\.json is missing, which belongs to"):
        open_inputs(tmp_path, {})


# The task.


def test_a_task_without_a_file_is_named(tmp_path):
    with pytest.raises(InferenceError, match=r"task\.json cannot be read \(No such file"):
        open_task(tmp_path)
    describe(tmp_path, pad_id=256)
    with pytest.raises(InferenceError, match=r"task\.json: not the description of a task \(a special token"):
        open_task(tmp_path)
    describe(tmp_path, length="16")
    with pytest.raises(InferenceError, match="length = '16'"):
        open_task(tmp_path)
    (tmp_path / "task.json").write_text("[" * 100_000)
    with pytest.raises(InferenceError, match="not JSON"):
        open_task(tmp_path)


def test_threads_share_the_librarys_tokenizer(pair):
    """Cutting is a state of the library's tokenizer: one thread's length must not cut another's text."""
    (_, ours), _ = pair
    expected = {length: ours.encode_whole(CORPUS[0], length).ids.tolist() for length in range(3, 11)}
    prompt = ours.encode_prompt(CORPUS[0]).tolist()

    def use(length):
        for _ in range(100):
            assert ours.encode_whole(CORPUS[0], length).ids.tolist() == expected[length]
            assert ours.encode_prompt(CORPUS[0]).tolist() == prompt

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # else threads seldom change within a call
    try:
        with ThreadPoolExecutor(len(expected)) as pool:
            list(pool.map(use, expected))
    finally:
        sys.setswitchinterval(interval)


def test_ids_are_int64(pair):
    for _, ours in pair:
        assert ours.encode_prompt("a").dtype == ours.encode_whole("a", 4).ids.dtype == np.int64
