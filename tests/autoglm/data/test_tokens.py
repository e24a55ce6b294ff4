"""The byte tokenizer, windows of text, and tables as tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fedglm.autoglm.data.bins import bins_from_ranges, bins_from_reference
from fedglm.autoglm.data.texts import cut_windows, smallest_type, truncate_texts
from fedglm.autoglm.data.tokenizer import is_byte_tokenizer, make_byte_tokenizer
from fedglm.autoglm.errors import DataError
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID, encode_bytes
from fedglm.inference.inputs.tables import TableEncoder

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(TEXTS)
def test_any_text_comes_back_and_ids_are_its_bytes(text: str) -> None:
    tokenizer = make_byte_tokenizer()
    ids = tokenizer.encode(text)
    assert ids == list(text.encode()) == encode_bytes(text).tolist()
    assert tokenizer.decode(ids) == text
    ended = make_byte_tokenizer(append_end=True)
    assert ended.encode(text) == [*ids, EOS_ID]
    assert ended.decode(ended.encode(text), skip_special_tokens=True) == text


def test_names_of_special_tokens_in_a_text_are_text() -> None:
    text = "a <pad> is no pad, </s> no end and <s> no begin"
    ids = make_byte_tokenizer().encode(text)
    assert not {PAD_ID, BOS_ID, EOS_ID} & set(ids)
    assert make_byte_tokenizer().decode(ids) == text


@pytest.mark.parametrize("append_end", [False, True])
def test_autotokenizer_loads_what_was_saved(tmp_path: Path, append_end: bool) -> None:
    tokenizer = make_byte_tokenizer(append_end=append_end, max_length=16)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "naïve </s> 漢字 \N{GRINNING FACE}\x00\n  two  spaces "
    assert again.encode(text) == tokenizer.encode(text)
    assert again.decode(again.encode(text), skip_special_tokens=True) == text
    assert len(again(text * 3, truncation=True)["input_ids"]) == 16
    assert (again.pad_token_id, again.bos_token_id, again.eos_token_id) == (PAD_ID, BOS_ID, EOS_ID)
    assert len(again) == 256
    assert is_byte_tokenizer(again)


@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=5), st.integers(8, 20))
def test_windows_hold_every_token_and_predict_it_once(texts: list[str], length: int) -> None:
    cut = cut_windows(texts, make_byte_tokenizer(), length=length, pad_id=PAD_ID)
    assert cut.ids.dtype == np.uint8
    for row, text in enumerate(texts):
        rebuilt: list[int] = []
        for ids, size in zip(cut.ids[cut.rows == row], cut.lengths[cut.rows == row], strict=True):
            assert 2 <= size <= length
            assert (ids[size:] == PAD_ID).all()
            assert not rebuilt or rebuilt[-1] == ids[0]
            rebuilt = rebuilt[:-1] + ids[:size].tolist()
        assert rebuilt == [BOS_ID, *text.encode(), EOS_ID]


@given(st.lists(TEXTS, min_size=1, max_size=4), st.integers(8, 20))
def test_classified_texts_are_what_the_tokenizer_makes(texts: list[str], length: int) -> None:
    tokenizer = make_byte_tokenizer(append_end=True, max_length=length)
    cut = truncate_texts(texts, tokenizer, length=length, pad_id=PAD_ID)
    expected = tokenizer(texts, truncation=True, padding="max_length", max_length=length)
    assert cut.ids.tolist() == expected["input_ids"]
    assert cut.lengths.tolist() == [sum(mask) for mask in expected["attention_mask"]]


def test_storage_is_as_small_as_the_vocabulary_allows() -> None:
    assert [smallest_type(size).name for size in (256, 257, 2**15, 2**15 + 1)] == ["uint8", "int16", "int16", "int32"]


def test_every_feature_has_its_own_tokens() -> None:
    table = bins_from_ranges({"age": (0, 100), "heat": (35, 43)}, bins=4)
    ids = table.encode(np.array([[0, 35], [99, 43], [25, 37], [-5, 50], [np.nan, np.nan]], dtype=np.float64))
    assert ids.tolist() == [[0, 5, 10], [3, 8, 10], [1, 6, 10], [0, 8, 10], [4, 9, 10]]
    assert (table.length, table.end_id, table.pad_id, table.vocab_size) == (3, 10, 11, 12)
    assert table.bin_positions().tolist() == pytest.approx([-1.3416, -0.4472, 0.4472, 1.3416, 0], abs=1e-4)


def test_bins_of_a_reference_hold_equal_counts() -> None:
    reference = np.random.default_rng(0).lognormal(size=(400, 1))
    table = bins_from_reference(("x",), reference, 8, origin="a test")
    assert np.bincount(table.encode(reference)[:, 0]).tolist() == [50] * 8


def test_tables_that_make_no_sense_are_refused() -> None:
    with pytest.raises(DataError, match="'x' must be finite and ascending"):
        bins_from_ranges({"x": (1, 1)}, 4)
    with pytest.raises(DataError, match="no value of feature 'x'"):
        bins_from_reference(("x",), np.full((3, 1), np.nan), 4, origin="a test")
    with pytest.raises(InferenceError, match="ascending"):
        TableEncoder(names=("x",), edges=((2.0, 1.0),), origin="a test")
    with pytest.raises(InferenceError, match="2 features"):
        bins_from_ranges({"x": (0, 1), "y": (0, 1)}, 4).encode(np.zeros((1, 3)))
