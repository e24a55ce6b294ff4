"""What tasks over texts share: a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Protocol, Self

from transformers import PreTrainedTokenizerBase

from fedglm.autoglm.data.records import Records
from fedglm.autoglm.data.texts import Sequences
from fedglm.autoglm.data.tokenizer import load_tokenizer
from fedglm.autoglm.tasks.task import Task


class Cutter(Protocol):
    """From texts to token sequences: ``windows`` or ``whole_texts`` of ``data.texts``."""

    def __call__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, length: int, pad_id: int
    ) -> Sequences:
        """Cut texts to sequences of at most ``length`` tokens."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TextTask(Task):
    """A task over texts.

    Attributes:
        appends_end: whether the byte tokenizer ends every text with the end token.
        cut: makes token sequences of texts.
        tokenizer: makes tokens of text; None where only a model is built.
    """

    appends_end: ClassVar[bool]
    cut: ClassVar[Cutter]

    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of_texts(cls, folder: str | None, *, length: int, **fields: object) -> Self:
        """The task with the tokenizer of a model's folder, or that of bytes without one.

        Args:
            folder: a local Hugging Face folder.
            length: tokens of the longest sequence.
            fields: what the task has besides, such as its classes.

        Raises:
            ModelError: the folder has no tokenizer, or its tokenizer has no token to pad with.
        """
        tokenizer = load_tokenizer(folder, append_end=cls.appends_end, length=length)
        pad = int(tokenizer.pad_token_id)
        return cls(
            length=length,
            vocab_size=max(len(tokenizer), pad + 1),
            pad_id=pad,
            bos_id=pad if tokenizer.bos_token_id is None else int(tokenizer.bos_token_id),
            eos_id=pad if tokenizer.eos_token_id is None else int(tokenizer.eos_token_id),
            tokenizer=tokenizer,
            **fields,
        )

    def sequences(self, records: Records) -> Sequences:
        """The records' token sequences, and the row that each is of."""
        if self.tokenizer is None:
            raise TypeError("a text task has a tokenizer")
        return self.cut(records.texts, self.tokenizer, length=self.length, pad_id=self.pad_id)

    def table_fields(self) -> None:
        """None: a text is no table."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer as transformers reads it."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def with_tokenizer(self, folder: str) -> Self:
        """The task with the tokenizer that goes with the model in a folder.

        Raises:
            ModelError: the folder has no tokenizer, or its tokenizer has no token to pad with.
        """
        return replace(self, tokenizer=load_tokenizer(folder, append_end=self.appends_end, length=self.length))
