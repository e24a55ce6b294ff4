"""Small tasks and a tokenizer of a few words."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from transformers import (
    PreTrainedTokenizerFast,
)

from fedglm.autoglm.tasks.classification import TextClassification
from fedglm.autoglm.tasks.language_modeling import LanguageModeling
from fedglm.autoglm.tasks.task import Task

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "the", "of", "what"]


def word_tokenizer(special: dict[str, str]) -> PreTrainedTokenizerFast:
    unknown = {"unk_token": "[UNK]"}
    backend = Tokenizer(token_models.WordLevel({word: i for i, word in enumerate(WORDS)}, **unknown))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **unknown, **special)


def text_task(labels: tuple[str, ...] = (), length: int = 24) -> Task:
    if labels:
        return TextClassification.for_texts(None, length=length, labels=labels)
    return LanguageModeling.for_texts(None, length=length)


TASKS = pytest.mark.parametrize("task", [text_task(), text_task(("no", "yes"))], ids=["language", "classes"])
