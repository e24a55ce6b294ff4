"""The inputs of a model: a prompt, a text or a row of a table as tokens, by what lies beside the model; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from fedglm.core.suggestions import list_choices
from fedglm.core.untrusted_files import read_regular
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID, VOCAB_SIZE, ByteTokenizer, byte_vocabulary
from fedglm.inference.inputs.library_tokenizer import SETTINGS_FILE, VOCABULARY_FILE, LibraryTokenizer, parse_object
from fedglm.inference.inputs.tables import TableEncoder
from fedglm.inference.inputs.task import TASK_FILE, TaskDescription, read_task_description
from fedglm.inference.inputs.tokenizer import Encoded, Ids, Tokenizer
from fedglm.inference.inputs.values import check_unicode, parse_number

Row = str | Mapping[str, object] | Sequence[float | None]
"""What is classified: a text, or a mapping that holds it; or a table's row by feature, or in the features' order."""

DEFAULT_TEXT_FIELD: Final = "text"
_MAX_BYTES: Final = 2**27  # of a file: published vocabularies of 256,000 tokens take about 35 MB


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """Makes tokens of what a model is given.

    Attributes:
        task: The model's task.
        end_ids: Tokens that end a generated text.
        tokenizer: Tokenizer of texts; None for tables.
        table: Encoder of a table's rows; None for texts.
    """

    task: TaskDescription
    end_ids: frozenset[int]
    tokenizer: Tokenizer | None
    table: TableEncoder | None

    def encode_prompt(self, text: str) -> Ids:
        """Return the ids of a text to be continued, (T,), int64, T at least 1.

        Raises:
            InferenceError: The text has half a character, or no token to start from.
        """
        return self._require_tokenizer().encode_prompt(check_unicode(text))

    def encode_row(self, row: Row, text_field: str = DEFAULT_TEXT_FIELD) -> Encoded:
        """Return the ids of a row to be classified.

        Args:
            row: The row.
            text_field: Name of the text in a mapping.

        Raises:
            InferenceError: The row lacks a field, or a value in it cannot be used; the message names the field.
        """
        if self.table is not None:
            return Encoded(self.table.encode(np.array([_list_features(row, self.table)]))[0].astype(np.int64), False)
        if isinstance(row, Mapping):
            _require_fields(row, (text_field,))
        whole = check_unicode(row[text_field] if isinstance(row, Mapping) else row)
        if not whole.strip():
            raise InferenceError("the text is blank")
        return self._require_tokenizer().encode_whole(whole, self.task.length)

    def _require_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InferenceError("the model reads rows of a table, and no texts")
        return self.tokenizer


def make_inputs(files: Mapping[str, bytes], config: Mapping[str, Any]) -> ModelInputs:
    """Make the inputs of a model from its files: ``task.json``, and those of a tokenizer where there are any.

    Without ``tokenizer.json`` it is the byte tokenizer, if the task's special tokens are those.

    Args:
        files: Content of each file by name.
        config: The model's ``config.json``; its ``eos_token_id`` ends a text too.

    Raises:
        InferenceError: A file is missing or damaged, or the tokenizer has other tokens than the task.
    """
    task = _parse_task(files[TASK_FILE])
    tokenizer = None if task.table else _make_tokenizer(files, task)
    if tokenizer is not None and tokenizer.vocab_size > task.vocab_size:
        count = f"{tokenizer.vocab_size} tokens, the task {task.vocab_size}"
        raise InferenceError(f"the tokenizer is not the one that the model was trained with ({count})")
    own = config.get("eos_token_id")
    ends = {own} if isinstance(own, int) else {*own} if isinstance(own, list) else set()
    if tokenizer is not None and tokenizer.eos_id is not None:
        ends.add(tokenizer.eos_id)
    table = task.table.encoder() if task.table else None
    return ModelInputs(task=task, end_ids=frozenset(ends), tokenizer=tokenizer, table=table)


def open_inputs(folder: Path, config: Mapping[str, Any]) -> ModelInputs:
    """Make the inputs of a model from the files in its folder; as `make_inputs`.

    Raises:
        InferenceError: As by `make_inputs`, or a file cannot be read.
    """
    names = [TASK_FILE, *(name for name in (VOCABULARY_FILE, SETTINGS_FILE) if (folder / name).exists())]
    try:
        return make_inputs({name: _read(folder / name) for name in names}, config)
    except InferenceError as exc:
        raise InferenceError(f"{folder}: {exc}") from exc


def open_task(folder: Path) -> TaskDescription:
    """Read the ``task.json`` of a model's folder.

    Raises:
        InferenceError: The file cannot be read, or is no description of a task.
    """
    try:
        return _parse_task(_read(folder / TASK_FILE))
    except InferenceError as exc:
        raise InferenceError(f"{folder}: {exc}") from exc


def _read(path: Path) -> bytes:
    try:
        return read_regular(path, _MAX_BYTES)
    except OSError as exc:
        raise InferenceError(f"{path.name} cannot be read ({exc.strerror})") from exc


def _parse_task(content: bytes) -> TaskDescription:
    try:
        return read_task_description(content)
    except InferenceError as exc:
        raise InferenceError(f"{TASK_FILE}: {exc}") from exc


def _make_tokenizer(files: Mapping[str, bytes], task: TaskDescription) -> Tokenizer:
    if VOCABULARY_FILE in files:
        model = parse_object(files[VOCABULARY_FILE], VOCABULARY_FILE).get("model")
        if isinstance(model, dict) and model.get("vocab") == byte_vocabulary():
            return ByteTokenizer()
        if SETTINGS_FILE not in files:
            raise InferenceError(f"{SETTINGS_FILE} is missing, which belongs to {VOCABULARY_FILE}")
        return LibraryTokenizer(files[VOCABULARY_FILE], files[SETTINGS_FILE])
    if (task.vocab_size, task.bos_id, task.eos_id, task.pad_id) == (VOCAB_SIZE, BOS_ID, EOS_ID, PAD_ID):
        return ByteTokenizer()
    raise InferenceError(f"{VOCABULARY_FILE} is missing, and the model's tokens are no bytes")


def _list_features(row: Row, table: TableEncoder) -> list[float]:
    if isinstance(row, Mapping):
        _require_fields(row, table.names)
        values: Sequence[object] = [row[name] for name in table.names]
    elif isinstance(row, str) or len(row) != len(table.names):
        raise InferenceError(f"the model reads rows of {len(table.names)} features: {', '.join(table.names)}")
    else:
        values = row
    features = []
    for name, value in zip(table.names, values, strict=True):
        try:
            features.append(parse_number(value))
        except ValueError as exc:
            raise InferenceError(f"the feature {name!r} {exc}") from exc
    return features


def _require_fields(row: Mapping[str, object], names: Sequence[str]) -> None:
    for name in names:
        if name not in row:
            raise InferenceError(f"no field {name!r}; {list_choices(name, row)}")
