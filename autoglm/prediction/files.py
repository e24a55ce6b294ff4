"""A file of rows classified: a chunk at a time, so that memory does not grow with it; what cannot be used is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from fedglm.autoglm.data.reading import Row, RowFile
from fedglm.autoglm.data.row_faults import RowError, RowFaults, RowPlace
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.prediction.writing import PredictionWriter
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.tokenizer import Encoded
from fedglm.inference.model import LiteModel

_CHUNK: Final = 256
"""Rows that are classified together."""
_MAX_NAMED: Final = 10
"""Maximum number of rows whose faults are kept in words."""


@dataclass
class UnusableRows(RowFaults):
    """Rows that were left out.

    Attributes:
        named: What is wrong with the first of them, a line each.
    """

    line_breaks: bool = True
    named: list[str] = field(default_factory=list)

    def count(self, error: RowError) -> None:
        """Count a row."""
        super().count(error)
        if len(self.named) < _MAX_NAMED:
            self.named.append(str(error))


@dataclass(kw_only=True)
class PredictionCounts:
    """What became of a file's rows.

    Attributes:
        labels: Number of rows by predicted class.
        cut: Number of rows whose text is longer than the model reads.
        known: Number of rows with a true class, where a field for it was named.
        correct: Number of those that were classified as that.
        unusable: Rows that were left out.
    """

    labels: Counter[str] = field(default_factory=Counter)
    cut: int = 0
    known: int = 0
    correct: int = 0
    unusable: UnusableRows = field(default_factory=UnusableRows)

    @property
    def rows(self) -> int:
        """Number of classified rows."""
        return self.labels.total()

    @property
    def left_out(self) -> int:
        """Number of rows that were left out."""
        return self.unusable.counts.total()


def predict_file(
    model: LiteModel,
    source: RowFile,
    writer: PredictionWriter,
    *,
    text_field: str,
    label_field: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> PredictionCounts:
    """Classify the rows of a file, and write each with its prediction, in their order.

    Args:
        model: A classifier.
        source: The rows.
        writer: Where they are written.
        text_field: Field that holds the text, for a classifier of texts.
        label_field: Field with the true class, to be compared with the prediction; the model never sees it.
        progress: Called after some rows, with their number so far.

    Raises:
        MissingField: The first line of a CSV file lacks a field.
        DataError: The file is damaged as a whole, none of its rows can be used, or a row cannot be written.
        InferenceError: The model is no classifier, or its output is not a number.
    """
    features = model.inputs.table.names if model.inputs.table is not None else (text_field,)
    needed = (*features, label_field) if label_field else features
    counts = PredictionCounts()
    rows = source.rows(needed, counts.unusable)
    while chunk := list(islice(_encode(model, source.name, rows, text_field, counts.unusable), _CHUNK)):
        predictions = model.classify([encoded for _, _, encoded in chunk])
        for (line, row, _), prediction in zip(chunk, predictions, strict=True):
            writer.write(line, row, prediction)
            counts.labels[prediction.label] += 1
            counts.cut += prediction.is_cut
            if label_field and (name := _read_name(row.get(label_field))):
                counts.known += 1
                counts.correct += name == prediction.label
        if progress is not None:
            progress(counts.rows)
    if not counts.rows:
        first = f"; {counts.unusable.named[0]}" if counts.unusable.named else ""
        raise DataError(f"{source.name}: no row can be used{first}")
    return counts


def _encode(
    model: LiteModel, name: str, rows: Iterator[tuple[int, Row]], text_field: str, unusable: UnusableRows
) -> Iterator[tuple[int, Row, Encoded]]:
    for line, row in rows:
        try:
            yield line, row, model.inputs.encode_row(row, text_field)
        except InferenceError as exc:
            unusable.count(RowError("text", RowPlace(name, line), str(exc)))


def _read_name(value: object) -> str:
    return "" if value is None else str(value).strip()
