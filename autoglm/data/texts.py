"""Texts as tokens: documents cut to windows for language models, one sequence per text for classifiers.

Both are (matrix of token ids, lengths, row numbers): the matrix is padded to the right and of the smallest integer type
that the vocabulary allows, so that 20 MB of text take about 20 MB with the byte tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from fedglm.autoglm.data.tokenizer import is_byte_tokenizer
from fedglm.autoglm.quiet import quiet_transformers
from fedglm.inference.inputs.byte_tokenizer import BOS_ID, EOS_ID, encode_bytes

Ids = npt.NDArray[np.integer]
_CHUNK = 512  # texts per call of a Hugging Face tokenizer: bounds the Python lists it makes


class Sequences(NamedTuple):
    """N padded sequences: ``ids`` (N, T), ``lengths`` (N,) int32, ``rows`` (N,) int64 (index of each one's text)."""

    ids: Ids
    lengths: npt.NDArray[np.int32]
    rows: npt.NDArray[np.int64]


def smallest_type(vocab_size: int) -> np.dtype[np.integer]:
    """Return the smallest of uint8, int16 and int32 that holds every token id."""
    return np.dtype(np.uint8 if vocab_size <= 256 else np.int16 if vocab_size <= 2**15 else np.int32)


def cut_windows(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, length: int, pad_id: int) -> Sequences:
    """Cut each document to windows of ``length`` tokens, for language modelling.

    A document is enclosed in its begin and end tokens. A window starts with the last token of the previous one, so that
    every token but the first is predicted exactly once; a document's last window may be shorter.
    """
    step = length - 1
    documents = list(_tokenize_documents(texts, tokenizer, pad_id))
    counts = np.array([max(1, -(-(len(ids) - 1) // step)) for ids in documents], dtype=np.int64)
    starts = np.concatenate(([0], np.cumsum(counts)))
    matrix = np.full((int(starts[-1]), length), pad_id, dtype=smallest_type(max(len(tokenizer), pad_id + 1)))
    lengths = np.full(len(matrix), length, dtype=np.int32)
    for ids, first, count in zip(documents, starts, counts, strict=False):
        padded = np.full(count * step + 1, pad_id, dtype=matrix.dtype)
        padded[: len(ids)] = ids
        matrix[first : first + count] = np.lib.stride_tricks.sliding_window_view(padded, length)[::step]
        lengths[first + count - 1] = len(ids) - (count - 1) * step
    return Sequences(matrix, lengths, np.repeat(np.arange(len(documents)), counts))


def truncate_texts(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, length: int, pad_id: int) -> Sequences:
    """Tokenize each text to one sequence of at most ``length`` tokens, special tokens included, for classification."""
    matrix = np.full((len(texts), length), pad_id, dtype=smallest_type(max(len(tokenizer), pad_id + 1)))
    lengths = np.empty(len(texts), dtype=np.int32)
    for row, ids in enumerate(_tokenize_texts(texts, tokenizer, length, pad_id)):
        lengths[row] = len(ids)
        matrix[row, : len(ids)] = ids
    return Sequences(matrix, lengths, np.arange(len(texts)))


def _tokenize_documents(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, pad_id: int) -> Iterator[Ids]:
    if is_byte_tokenizer(tokenizer):
        begin, end = np.array([BOS_ID], np.uint8), np.array([EOS_ID], np.uint8)
        yield from (np.concatenate((begin, encode_bytes(text), end)) for text in texts)
        return
    for ids in _tokenize(texts, tokenizer):
        before = [] if tokenizer.bos_token_id in (None, *ids[:1]) else [tokenizer.bos_token_id]
        after = [] if tokenizer.eos_token_id in (None, *ids[-1:]) else [tokenizer.eos_token_id]
        yield np.array([*before, *ids, *after] or [pad_id], dtype=np.int32)


def _tokenize_texts(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, pad_id: int
) -> Iterator[Ids]:
    if is_byte_tokenizer(tokenizer):
        end = np.array([EOS_ID], np.uint8)
        yield from (np.concatenate((encode_bytes(text[:length])[: length - 1], end)) for text in texts)
        return
    for ids in _tokenize(texts, tokenizer, truncation=True, max_length=length):
        yield np.array(ids or [pad_id], dtype=np.int32)


def _tokenize(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, truncation: bool = False, max_length: int | None = None
) -> Iterator[list[int]]:
    for first in range(0, len(texts), _CHUNK):
        with quiet_transformers():
            chunk = tokenizer(list(texts[first : first + _CHUNK]), truncation=truncation, max_length=max_length)
        yield from chunk["input_ids"]
