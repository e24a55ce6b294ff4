"""Base class of the tasks over texts, with a tokenizer."""

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
    """Makes token sequences of texts: ``cut_windows`` or ``truncate_texts`` of ``data.texts``."""

    def __call__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, length: int, pad_id: int
    ) -> Sequences:
        """Cut texts to sequences of at most ``length`` tokens."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TextTask(Task):
    """A task over texts.

    Attributes:
        appends_end: Whether the byte tokenizer ends every text with the end token.
        cut: Makes token sequences of texts.
        tokenizer: Tokenizer of the texts; None where only a model is built.
    """

    appends_end: ClassVar[bool]
    cut: ClassVar[Cutter]

    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def for_texts(cls, folder: str | None, *, length: int, **fields: object) -> Self:
        """Make the task with the tokenizer of a model's folder, or the byte tokenizer without one.

        Args:
            folder: Local Hugging Face folder, or None.
            length: Maximum number of tokens of a sequence.
            fields: Further fields of the task, such as its classes.

        Raises:
            ModelError: The folder has no tokenizer, or its tokenizer has no padding token.
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
        """Return the records' token sequences, and the row of each."""
        if self.tokenizer is None:
            raise TypeError("a text task has a tokenizer")
        return self.cut(records.texts, self.tokenizer, length=self.length, pad_id=self.pad_id)

    def table_fields(self) -> None:
        """Return None: a text is no table."""

    def save_tokenizer(self, folder: Path) -> None:
        """Save the tokenizer for transformers to load."""
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def with_tokenizer(self, folder: str) -> Self:
        """Return the task with the tokenizer of the model in a folder.

        Raises:
            ModelError: The folder has no tokenizer, or its tokenizer has no padding token.
        """
        return replace(self, tokenizer=load_tokenizer(folder, append_end=self.appends_end, length=self.length))
