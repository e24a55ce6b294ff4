"""Rows of a JSON-lines or CSV file, gzipped or not, one dict at a time, with the line each stands on."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fedglm.autoglm.errors import DataError

Row = dict[str, object]
_MOST_CHARACTERS = 2**31 - 1  # of one CSV field; the csv module's own limit is 131,072


def read_rows(source: str | Path) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row) of ``*.jsonl``, ``*.ndjson``, ``*.csv`` or ``*.tsv``, each also with ``.gz``.

    JSON lines hold one object each; blank lines are passed over. A CSV file starts with a line of field names; its
    values are strings. Text is UTF-8, with or without a byte order mark.

    Raises:
        DataError: the file is missing, empty, of another kind, not UTF-8, or malformed; with the line's number.
    """
    path = Path(source).expanduser()
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    kind = suffixes[-2 if zipped else -1] if len(suffixes) > zipped else ""
    readers = {".jsonl": _json_lines, ".ndjson": _json_lines, ".csv": _csv_lines, ".tsv": _csv_lines}
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if kind not in readers:
        raise DataError(f"{path}: the name must end in .jsonl, .ndjson, .csv or .tsv (and .gz where it is gzipped)")
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            empty = True
            for row in readers[kind](path, file, "\t" if kind == ".tsv" else ","):
                empty = False
                yield row
    except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise DataError(f"{path}: the gzip file is damaged or cut off ({exc})") from exc
    except OSError as exc:
        raise DataError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    if empty:
        raise DataError(f"{path}: the file holds no rows")


def _lines(path: Path, file: IO[bytes] | gzip.GzipFile) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(file, start=1):
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as exc:
            raise DataError(f"{path}, line {number}: not UTF-8 (byte {exc.start + 1} of the line); save it so") from exc


def _json_lines(path: Path, file: IO[bytes] | gzip.GzipFile, _: str) -> Iterator[tuple[int, Row]]:
    for number, line in _lines(path, file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise DataError(f"{path}, line {number}: not JSON ({exc})") from exc
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number}: each line must be a JSON object, this is a {type(row).__name__}")
        yield number, row


def _csv_lines(path: Path, file: IO[bytes] | gzip.GzipFile, delimiter: str) -> Iterator[tuple[int, Row]]:
    with _long_fields():
        reader = csv.reader((line for _, line in _lines(path, file)), delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
            if len(set(header)) != len(header):
                raise DataError(f"{path}, line 1: two fields have the same name")
            for values in reader:
                if not values:
                    continue
                if len(values) != len(header):
                    counts = f"{len(values)} values for {len(header)} fields"
                    raise DataError(f"{path}, line {reader.line_num}: {counts}; quote values that hold the delimiter")
                yield reader.line_num, dict(zip(header, values, strict=True))
        except csv.Error as exc:
            raise DataError(f"{path}, line {reader.line_num}: not CSV ({exc})") from exc


@contextmanager
def _long_fields() -> Iterator[None]:
    before = csv.field_size_limit(_MOST_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)
