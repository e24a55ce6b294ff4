"""Predictions as JSON lines or CSV: each row as it was read, with its class and the probabilities of all classes."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol, TextIO

from fedglm.autoglm.data.reading import Row
from fedglm.autoglm.errors import DataError
from fedglm.core.files import replaced_file
from fedglm.inference.prediction import Prediction

_DELIMITERS = {".jsonl": "", ".ndjson": "", ".csv": ",", ".tsv": "\t"}


class PredictionWriter(Protocol):
    """Writes rows with their predictions."""

    def write(self, line: int, row: Row, prediction: Prediction) -> None:
        """Write a row.

        Args:
            line: Its line in the file that it was read from, for messages.
            row: Its fields.
            prediction: Its prediction.

        Raises:
            DataError: The row has a field of the name of an added one, or one that the first row lacks and CSV cannot
                take.
        """
        ...


def check_output(path: Path) -> str:
    """Check that a file has the name of a kind that can be written, and return the delimiter; empty for JSON lines.

    Raises:
        DataError: The name has another ending.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in _DELIMITERS:
        raise DataError(f"{path}: the name must end in .jsonl, .ndjson, .csv or .tsv (and .gz to be gzipped)")
    return _DELIMITERS[suffixes[-1]]


@contextmanager
def open_writer(path: Path, classes: Sequence[str], prefix: str) -> Iterator[PredictionWriter]:
    """Open a file for predictions, which replaces one at `path` at the end of the block, and only then.

    Args:
        path: The file; its name says the format.
        classes: Names of the classes.
        prefix: Put before the names of the added fields.

    Raises:
        DataError: The name has another ending.
        StorageError: The file cannot be written.
    """
    delimiter = check_output(path)
    with replaced_file(path) as raw:
        # Without a time stamp the same predictions make the same file.
        zipped = gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) if path.suffix.lower() == ".gz" else None
        text = io.TextIOWrapper(_as_binary(zipped or raw), encoding="utf-8", newline="", write_through=False)
        yield CsvWriter(text, classes, prefix, delimiter) if delimiter else JsonWriter(text, prefix)
        text.flush()
        text.detach()
        if zipped is not None:
            zipped.close()


def _as_binary(file: gzip.GzipFile | IO[bytes]) -> IO[bytes]:
    return file  # type: ignore[return-value]  # a GzipFile is what TextIOWrapper needs


class JsonWriter:
    """Writes an object a line, with `label` and `probabilities`.

    Args:
        file: Where to.
        prefix: Put before the names of the added fields.
        ascii_only: Whether other characters are written as escapes, for a terminal that may know no other.
    """

    def __init__(self, file: TextIO, prefix: str, *, ascii_only: bool = False) -> None:
        self._file, self._prefix, self._ascii_only = file, prefix, ascii_only

    def write(self, line: int, row: Row, prediction: Prediction) -> None:
        """Write a row."""
        added = {
            f"{self._prefix}label": prediction.label,
            f"{self._prefix}probabilities": prediction.probabilities,
        }
        _check_names(line, row, added)
        self._file.write(json.dumps(dict(row) | added, ensure_ascii=self._ascii_only) + "\n")


class CsvWriter:
    """Writes the fields of the first row, `label`, and a column `probability_CLASS` for each class.

    Args:
        file: Where to.
        classes: Names of the classes.
        prefix: Put before the names of the added columns.
        delimiter: Between values.
    """

    def __init__(self, file: TextIO, classes: Sequence[str], prefix: str, delimiter: str) -> None:
        self._added = [f"{prefix}label", *(f"{prefix}probability_{name}" for name in classes)]
        self._writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        self._fields: list[str] | None = None

    def write(self, line: int, row: Row, prediction: Prediction) -> None:
        """Write a row; what is no text or number, as JSON."""
        _check_names(line, row, self._added)
        if self._fields is None:
            self._fields = list(row)
            self._writer.writerow([*self._fields, *self._added])
        if new := [name for name in row if name not in self._fields]:
            raise DataError(
                f"line {line} has a field {new[0]!r} that the first row lacks, and a CSV file has no column for it: "
                "write to a .jsonl file"
            )
        values = [_format(row.get(name)) for name in self._fields]
        self._writer.writerow([*values, prediction.label, *prediction.probabilities.values()])


def _check_names(line: int, row: Row, added: Iterable[str]) -> None:
    for name in added:
        if name in row:
            raise DataError(
                f"line {line} has a field {name!r} already, which the prediction would replace: "
                "--prefix predicted_ puts that word before the names of all new fields"
            )


def _format(value: object) -> object:
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, ensure_ascii=False)
