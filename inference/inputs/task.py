"""The task of a model, as ``task.json`` beside it says: its kind, its classes, its tokens; read without torch."""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedglm.core.validation_errors import explain
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.tables import TableEncoder

TASK_FILE: Final = "task.json"
"""Name of the file."""

Kind = Literal["language-model", "text-classification", "tabular-classification"]
"""Kind of a task."""

_Id = Annotated[int, Field(ge=0, lt=2**31, strict=True)]
_Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]


class Table(BaseModel):
    """Fields of a table's encoder; `TableEncoder` says what they mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    origin: str

    def encoder(self) -> TableEncoder:
        """Make the encoder."""
        return TableEncoder(names=self.names, edges=self.edges, origin=self.origin)


class TaskDescription(BaseModel):
    """What must be known of a model to give it an input and to read its output.

    Attributes:
        kind: Kind of the task.
        length: Maximum number of tokens of a sequence in training; longer texts are cut for classification.
        vocab_size: Exclusive upper bound of the token ids that the data have; a model may have more embeddings.
        pad_id: Token that pads shorter sequences.
        bos_id: Token that begins a document.
        eos_id: Token that ends a sequence.
        labels: Class names in the order of the outputs; empty for a language model.
        table: Encoder of a table's rows; None for text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    length: _Count
    vocab_size: _Count
    pad_id: _Id
    bos_id: _Id
    eos_id: _Id
    labels: tuple[str, ...]
    table: Table | None

    @property
    def is_generative(self) -> bool:
        """Whether the model continues texts; else it classifies."""
        return self.kind == "language-model"

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if max(self.pad_id, self.bos_id, self.eos_id) >= self.vocab_size:
            raise ValueError("a special token is not below vocab_size")
        if self.is_generative == bool(self.labels):
            raise ValueError("a classifier has classes, and a language model none")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("a class is named twice")
        if (self.kind == "tabular-classification") != (self.table is not None):
            raise ValueError("a classifier of tables has one, and no other task has")
        if self.table is not None:
            encoder = self.table.encoder()
            if (encoder.length, encoder.vocab_size) != (self.length, self.vocab_size):
                raise ValueError("length and vocab_size are not those of the table")
        return self


def read_task_description(text: str | bytes) -> TaskDescription:
    """Read the content of ``task.json``.

    Raises:
        InferenceError: The text is no description of a task; the message names the key.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise InferenceError(f"not the description of a task (not JSON: {exc})") from exc
    try:
        return TaskDescription.model_validate(fields)
    except ValidationError as exc:
        raise InferenceError(f"not the description of a task ({explain(exc, TaskDescription)})") from exc
