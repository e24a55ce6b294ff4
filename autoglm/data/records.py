"""Records in columns, before tokenization, from a file's fields or a built-in's arrays."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedglm.autoglm.data.reading import MissingField, Row, read_rows
from fedglm.autoglm.data.row_faults import Reason, RowError, RowFaults, RowPlace, report
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.settings import DataSettings
from fedglm.inference.inputs.values import parse_number

_MAX_SHOWN = 40
"""Maximum characters of a value that an error quotes."""


@dataclass(kw_only=True)
class Records:
    """N records, one list per column; a column that the task does not use is empty.

    Attributes:
        texts: Text of each record.
        values: Features of each record of a table, (N, F), float64, NaN for missing values.
        labels: Class name of each record.
        units: Name of the privacy unit of each record.
        sites: Name of the site of each record.
        skipped: Number of rows without usable text, by site name.
    """

    texts: list[str] = field(default_factory=list)
    values: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    labels: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    sites: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.units)

    def unit_ids(self) -> npt.NDArray[np.int64]:
        """Number the units from 0 in order of first occurrence; return the number of each row's unit, (N,)."""
        return number_names(self.units, dict.fromkeys(self.units))

    def unit_contents(self, *, named: bool, labelled: bool) -> list[bytes]:
        """Return what each row's unit is known by wherever the row lies, (N,): its name, or the record itself.

        Args:
            named: Whether a field names the units; otherwise each record is its own.
            labelled: Whether the label is part of a record.
        """
        if named:
            return [name.encode() for name in self.units]
        labels = self.labels if labelled else [""] * len(self)
        bodies = [text.encode() for text in self.texts] or [row.tobytes() for row in self.values]
        return [label.encode() + b"\0" + body for label, body in zip(labels, bodies, strict=True)]


def number_names(names: Sequence[str], known: Iterable[str]) -> npt.NDArray[np.int64]:
    """Return the index of each name among the known ones, (N,).

    Raises:
        KeyError: A name is not known.
    """
    numbers_of = {name: number for number, name in enumerate(known)}
    return np.array([numbers_of[name] for name in names], dtype=np.int64)


def read_records(
    settings: DataSettings, *, tabular: bool, classes: Collection[str] = (), faults: RowFaults | None = None
) -> Records:
    """Read the columns that the settings name from their file.

    A row whose text is missing or blank is left out and counted.

    Args:
        settings: Settings with the file and its fields.
        tabular: Whether a record consists of features instead of a text.
        classes: Allowed values of the label field; empty allows any.
        faults: Counts rows that cannot be used, which are then left out; a feature that is no number is then missing.
            Without it they are errors, and so is a file without any record.

    Raises:
        DataError: The file cannot be read, a field is missing (the message lists the file's), or a row is no record.
    """
    records, values = Records(), []
    text_field = settings.text_field or "text"
    content = settings.feature_fields if tabular else (text_field,)
    named = [
        name for name in (*content, settings.label_field, settings.unit_field, settings.site_field) if name is not None
    ]
    for number, row in read_rows(settings.source, fields=named, faults=faults):
        place = RowPlace(settings.source, number)
        if faults is None and not len(records) and not records.skipped:
            require_fields(row, named, place)
        try:
            site = read_name(row, settings.site_field, place) if settings.site_field else ""
            text = None if tabular else read_text(row.get(text_field), text_field, place)
            if text is None and not tabular:
                records.skipped[site] = records.skipped.get(site, 0) + 1
                if faults is not None:
                    faults.count(RowError("blank", place, f"the field {text_field!r} holds no text"))
                continue
            label = read_class(row, settings.label_field, place, classes) if settings.label_field else ""
            unit = read_name(row, settings.unit_field, place) if settings.unit_field else str(number)
            features = read_numbers(row, content, place, faults) if tabular else []
        except RowError as exc:
            report(exc, faults)
            continue
        if text is None:
            values.append(features)
        else:
            records.texts.append(text)
        if settings.label_field:
            records.labels.append(label)
        if settings.site_field:
            records.sites.append(site)
        records.units.append(unit)
    if not len(records) and faults is None:
        raise DataError(f"{settings.source}: no row holds any text in the field {text_field!r}")
    if tabular:
        records.values = np.array(values, dtype=np.float64).reshape(len(values), len(content))
    return records


def require_fields(row: Row, named: Sequence[str], place: RowPlace) -> None:
    """Check that a row has the fields.

    Raises:
        MissingField: A field is missing; the message lists the existing ones, near names first.
    """
    for name in named:
        if name not in row:
            raise MissingField(f"{place.source}, line {place.line}", name, tuple(row))


def read_numbers(row: Row, fields: Sequence[str], place: RowPlace, faults: RowFaults | None = None) -> list[float]:
    """Return a row's features as floats; null and blank strings are NaN, and with `faults` anything that is no number.

    Raises:
        RowError: A feature is no number, and faults are not counted.
    """
    features, error = [], None
    for name in fields:
        try:
            features.append(parse_number(row.get(name)))
        except ValueError as exc:
            error = error or RowError("number", place, f"the feature {name!r} {exc}")
            features.append(float("nan"))
    if error is not None:
        report(error, faults)
    return features


def read_text(value: object, name: str, place: RowPlace) -> str | None:
    """Return a text unchanged; None for one that is missing or blank.

    Raises:
        RowError: The value is no text, or contains a lone surrogate.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise RowError("text", place, f"the field {name!r} must be text, not a {type(value).__name__}")
    _check_unicode(value, name, place)
    return value if value.strip() else None


def read_class(row: Row, name: str, place: RowPlace, classes: Collection[str]) -> str:
    """Return the class in a field, one of `classes` unless that is empty.

    Raises:
        RowError: The field holds another class, or none.
    """
    label = read_name(row, name, place, reason="class")
    if classes and label not in classes:
        problem = f"the class {label[:_MAX_SHOWN]!r} is not in class_names: name it there, or correct the row"
        raise RowError("class", place, problem)
    return label


def read_name(row: Row, name: str, place: RowPlace, *, reason: Reason = "unit") -> str:
    """Return the name or number in a field, as stripped text.

    Raises:
        RowError: The field holds none, or contains a lone surrogate.
    """
    value = row.get(name)
    if value is None or value != value or isinstance(value, dict | list) or not str(value).strip():
        raise RowError(reason, place, f"the field {name!r} must hold a name or a number")
    _check_unicode(str(value), name, place)
    return str(value).strip()


def _check_unicode(value: str, name: str, place: RowPlace) -> None:
    # JSON can encode a lone surrogate, which no UTF-8 file can hold.
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        problem = f"the field {name!r} holds half a character (a lone surrogate); mend the text"
        raise RowError("encoding", place, problem) from exc
