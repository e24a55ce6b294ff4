"""Records in columns, before they become tokens: what a file's fields or a built-in's arrays amount to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedglm.autoglm.data.reading import MissingField, Row, read_rows
from fedglm.autoglm.data.row_faults import Reason, RowError, RowFaults, RowPlace, report
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.settings import DataSettings

_LONGEST_SHOWN = 40
"""Characters of a value that an error quotes."""


@dataclass(kw_only=True)
class Records:
    """One list a column, a row each; a column that the task does not use is empty.

    ``texts`` or ``values`` (N, F) float64 with NaN for what is missing; ``labels``, ``units`` and ``sites`` are names.
    ``skipped`` counts, by site name, rows that hold no usable text.
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
        """(rows,) a number for each row's unit, from 0 on in the order in which units come."""
        return numbered(self.units, dict.fromkeys(self.units))


def numbered(names: Sequence[str], known: Iterable[str]) -> npt.NDArray[np.int64]:
    """(N,) where each name stands among the known ones.

    Raises:
        KeyError: a name is not known.
    """
    numbers_of = {name: number for number, name in enumerate(known)}
    return np.array([numbers_of[name] for name in names], dtype=np.int64)


def read_records(
    settings: DataSettings, *, tabular: bool, classes: Collection[str] = (), faults: RowFaults | None = None
) -> Records:
    """The columns that the settings name, from their file.

    A row whose text is missing or blank is left out and counted.

    Args:
        settings: name the file and its fields.
        tabular: whether the features make up a record, and not a text.
        classes: those that the label field may hold; any without.
        faults: counts rows that cannot be used, which are then left out; a feature that is no number is then missing.
            Without it they are errors, and so is a file without any record.

    Raises:
        DataError: the file cannot be read, a field is missing (the message lists the file's), or a row is no record.
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
            site = name_of(row, settings.site_field, place) if settings.site_field else ""
            text = None if tabular else text_of(row.get(text_field), text_field, place)
            if text is None and not tabular:
                records.skipped[site] = records.skipped.get(site, 0) + 1
                if faults is not None:
                    faults.count(RowError("blank", place, f"the field {text_field!r} holds no text"))
                continue
            label = class_of(row, settings.label_field, place, classes) if settings.label_field else ""
            unit = name_of(row, settings.unit_field, place) if settings.unit_field else str(number)
            features = numbers(row, content, place, faults) if tabular else []
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
        MissingField: one is missing; the message lists the fields there are, near names first.
    """
    for name in named:
        if name not in row:
            raise MissingField(f"{place.source}, line {place.line}", name, tuple(row))


def numbers(row: Row, fields: Sequence[str], place: RowPlace, faults: RowFaults | None = None) -> list[float]:
    """A row's features as floats; null and the empty string are NaN, and with `faults` whatever else is no number.

    Raises:
        RowError: a feature is no number, and nobody counts that.
    """
    found, wrong = [], None
    for name in fields:
        value = row.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            found.append(float("nan"))
            continue
        try:
            if not isinstance(value, str | int | float):
                raise ValueError
            found.append(float(value))
        except (ValueError, OverflowError):
            short = repr(value)[:_LONGEST_SHOWN]
            wrong = wrong or RowError("number", place, f"the feature {name!r} must be a number, not {short}")
            found.append(float("nan"))
    if wrong is not None:
        report(wrong, faults)
    return found


def text_of(value: object, name: str, place: RowPlace) -> str | None:
    """A text as it stands; None for one that is missing or blank.

    Raises:
        RowError: it is no text, or holds half a character.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise RowError("text", place, f"the field {name!r} must be text, not a {type(value).__name__}")
    _check_unicode(value, name, place)
    return value if value.strip() else None


def class_of(row: Row, name: str, place: RowPlace, classes: Collection[str]) -> str:
    """The class in a field, one of `classes` where there are any.

    Raises:
        RowError: it is another, or none.
    """
    label = name_of(row, name, place, reason="class")
    if classes and label not in classes:
        problem = f"the class {label[:_LONGEST_SHOWN]!r} is not in class_names: name it there, or correct the row"
        raise RowError("class", place, problem)
    return label


def name_of(row: Row, name: str, place: RowPlace, *, reason: Reason = "unit") -> str:
    """The name or number in a field, as text without blanks around it.

    Raises:
        RowError: there is none, or it holds half a character.
    """
    value = row.get(name)
    if value is None or value != value or isinstance(value, dict | list) or not str(value).strip():
        raise RowError(reason, place, f"the field {name!r} must hold a name or a number")
    _check_unicode(str(value), name, place)
    return str(value).strip()


def _check_unicode(value: str, name: str, place: RowPlace) -> None:
    # JSON can spell half of a surrogate pair, which no UTF-8 file can hold.
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        problem = f"the field {name!r} holds half a character (a lone surrogate); mend the text"
        raise RowError("encoding", place, problem) from exc
