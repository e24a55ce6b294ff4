"""Rows of a JSON-lines or CSV file, gzipped or not, one dict at a time, with their line numbers."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from fedglm.autoglm.data.lines import Lines
from fedglm.autoglm.data.row_faults import RowError, RowFaults
from fedglm.autoglm.errors import DataError
from fedglm.core.suggestions import list_choices

Row = dict[str, object]

_KINDS = {".jsonl": "", ".ndjson": "", ".csv": ",", ".tsv": "\t"}
"""Delimiter of a row's values by file extension; empty where a row is JSON."""
_HEAD = 64  # bytes that tell JSON from CSV
_MAX_CHARACTERS = 2**31 - 1  # maximum characters of one CSV field; the csv module's own limit is 131,072


class MissingField(DataError):
    """A file, or a row of it, lacks a required field; the message lists the existing ones.

    Attributes:
        name: Name of the missing field.
        known: Names of the existing fields.
    """

    def __init__(self, where: str, name: str, known: Sequence[str]) -> None:
        super().__init__(f"{where}: no field {name!r}; {list_choices(name, known)}")
        self.name, self.known = name, tuple(known)


def check_file(source: str | Path) -> tuple[Path, str, bool]:
    """Check that a file exists and has the name of a kind that can be read.

    Returns:
        Its path, its extension without ``.gz``, and whether it is gzipped.

    Raises:
        DataError: The file is missing or of another kind.
    """
    path = Path(source).expanduser()
    suffixes = [suffix.lower() for suffix in path.suffixes]
    zipped = suffixes[-1:] == [".gz"]
    kind = suffixes[-2 if zipped else -1] if len(suffixes) > zipped else ""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if kind not in _KINDS:
        raise DataError(f"{path}: the name must end in .jsonl, .ndjson, .csv or .tsv (and .gz where it is gzipped)")
    return path, kind, zipped


def read_rows(
    source: str | Path, *, fields: Sequence[str] = (), faults: RowFaults | None = None
) -> Iterator[tuple[int, Row]]:
    """Yield (line number, row) of ``*.jsonl``, ``*.ndjson``, ``*.csv`` or ``*.tsv``, each also with ``.gz``.

    JSON lines hold one object each; blank lines are skipped. A CSV file starts with a line of field names; its values
    are strings. Text is UTF-8, with or without a byte order mark.

    With ``faults`` no row, whatever its content, makes reading fail or prevents another row from being read: a row that
    cannot be parsed is counted and left out, and so is one longer than `lines.MAX_ROW_BYTES`. Each row of a CSV file is
    then one line. Where `faults` allows line breaks within quotes, and the text after a quote is no row, the next line
    is read as a row of its own; but a stray quote may then merge several rows.

    Args:
        source: The file.
        fields: Names that the first line of a CSV file must have.
        faults: Counts rows that cannot be parsed. Without it they are errors, and so is a file without rows.

    Raises:
        MissingField: One of `fields` is missing.
        DataError: The file is missing, of another kind, or damaged as a whole: its gzip, or a CSV file's first line;
            or a row cannot be parsed. The message names the line.
    """
    with open_rows(source) as file:
        yield from file.rows(fields, faults)


class RowFile:
    """An open file of rows.

    Attributes:
        name: Its name, for messages.
        size: Its size in bytes as it lies on the disk; None for standard input.
    """

    def __init__(
        self, name: str, raw: BufferedReader | gzip.GzipFile, kind: str, *, zipped: bool, size: int | None
    ) -> None:
        self.name, self.size = name, size
        self._raw, self._kind, self._zipped = raw, kind, zipped

    def position(self) -> int:
        """Return how many of the bytes have been read; 0 for standard input."""
        return 0 if self.size is None else self._raw.tell()

    def rows(self, fields: Sequence[str] = (), faults: RowFaults | None = None) -> Iterator[tuple[int, Row]]:
        """Yield (line number, row), once; arguments and errors are those of `read_rows`."""
        empty = True
        with _explain_errors(self.name):
            lines = Lines(self.name, gzip.GzipFile(fileobj=self._raw) if self._zipped else self._raw, faults)
            delimiter = _KINDS[self._kind]
            for row in _read_csv_rows(lines, delimiter, fields) if delimiter else _read_objects(lines):
                empty = False
                yield row
        if empty and faults is None:
            raise DataError(f"{self.name}: the file holds no rows")


@contextmanager
def open_rows(source: str | Path) -> Iterator[RowFile]:
    """Open a file of rows, of the kinds that `read_rows` reads.

    Raises:
        DataError: The file is missing or of another kind, or cannot be opened.
    """
    path, kind, zipped = check_file(source)
    try:
        raw = path.open("rb")
    except OSError as exc:
        raise DataError(f"{path}: cannot be read ({exc.strerror or exc})") from exc
    with raw:
        yield RowFile(str(path), raw, kind, zipped=zipped, size=os.fstat(raw.fileno()).st_size)


def recognize_rows(name: str, stream: BufferedReader) -> RowFile:
    """Recognize what a stream without a name holds: JSON lines begin with a brace, anything else is CSV.

    Args:
        name: What messages call it.
        stream: The stream, gzipped or not; it need not be seekable.

    Raises:
        DataError: The stream cannot be read.
    """
    with _explain_errors(name):
        zipped = stream.peek(2)[:2] == b"\x1f\x8b"  # RFC 1952, section 2.3.1
        raw = gzip.GzipFile(fileobj=stream) if zipped else stream
        start = raw.peek(_HEAD)[:_HEAD].removeprefix(codecs.BOM_UTF8).lstrip()
    return RowFile(name, raw, ".jsonl" if start.startswith(b"{") else ".csv", zipped=False, size=None)


@contextmanager
def _explain_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (gzip.BadGzipFile, EOFError, zlib.error) as exc:
        raise DataError(f"{name}: the gzip file is damaged or cut off ({exc})") from exc
    except OSError as exc:
        raise DataError(f"{name}: cannot be read ({exc.strerror or exc})") from exc


def _read_objects(lines: Lines) -> Iterator[tuple[int, Row]]:
    while True:
        lines.begin_row()
        try:
            line = next(lines)
            row = json.loads(line) if line.strip() else None
        except StopIteration:
            return
        except RowError as exc:
            lines.leave_out(exc)
        except (ValueError, RecursionError) as exc:
            lines.leave_out(lines.fault("syntax", f"not JSON ({exc})"))
        else:
            if isinstance(row, dict):
                yield lines.number, row
            elif line.strip():
                kind = type(row).__name__
                lines.leave_out(lines.fault("syntax", f"each line must be a JSON object, this is a {kind}"))


def _read_csv_rows(lines: Lines, delimiter: str, fields: Sequence[str]) -> Iterator[tuple[int, Row]]:
    with _allow_long_fields():
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            header = next(reader, [])
        except csv.Error as exc:
            raise lines.fault("syntax", f"not CSV ({exc})") from exc
        if len(set(header)) != len(header):
            raise lines.fault("syntax", "two fields have the same name")
        for name in fields:
            if name not in header:
                raise MissingField(f"{lines.source}, line 1", name, header)
        while True:
            lines.begin_row()
            try:
                values = next(reader)
                if values and len(values) != len(header):
                    counts = f"{len(values)} values for {len(header)} fields"
                    raise lines.fault("syntax", f"{counts}; quote values that hold the delimiter")
            except StopIteration:
                return
            except RowError as exc:
                lines.leave_out(exc)
            except csv.Error as exc:
                lines.leave_out(lines.fault("syntax", f"not CSV ({exc})"))
            else:
                if values:
                    yield lines.number, dict(zip(header, values, strict=True))


@contextmanager
def _allow_long_fields() -> Iterator[None]:
    before = csv.field_size_limit(_MAX_CHARACTERS)
    try:
        yield
    finally:
        csv.field_size_limit(before)
