"""Small tasks and a tokenizer of a few words."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from transformers import (
    PreTrainedTokenizerFast,
)

from fedglm.autoglm.data.tokenizer import BOS_ID, EOS_ID, PAD_ID, byte_tokenizer
from fedglm.autoglm.tasks import Task

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "the", "of", "what"]


def word_tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    unknown = {"unk_token": "[UNK]"}
    backend = Tokenizer(token_models.WordLevel({word: i for i, word in enumerate(WORDS)}, **unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **unknown, **special)


def text_task(labels: tuple[str, ...] = (), length: int = 24) -> Task:
    return Task(
        kind="text-classification" if labels else "language-model",
        length=length,
        vocab_size=256,
        pad_id=PAD_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        labels=labels,
        tokenizer=byte_tokenizer(append_end=bool(labels), max_length=length),
    )


TASKS = pytest.mark.parametrize("task", [text_task(), text_task(("no", "yes"))], ids=["language", "classes"])
