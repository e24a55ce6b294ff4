"""Records in columns, before they become tokens: what a file's fields or a built-in's arrays amount to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from fedglm.autoglm.errors import DataError, choices
from fedglm.autoglm.reading import Row, read_rows
from fedglm.autoglm.settings import DataSettings


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


def read_records(settings: DataSettings, *, tabular: bool) -> Records:
    """The columns that the settings name, from their file.

    A row whose text is missing or blank is left out and counted.

    Raises:
        DataError: a field is missing (the message lists the file's), or a value is not what the task needs.
    """
    records, values = Records(), []
    text_field = settings.text_field or "text"
    content = settings.feature_fields if tabular else (text_field,)
    checked = False
    for number, row in read_rows(settings.source):
        where = f"{settings.source}, line {number}"
        if not checked:
            named = (*content, settings.label_field, settings.unit_field, settings.site_field)
            require_fields(row, [name for name in named if name], where)
            checked = True
        site = name_of(row, settings.site_field, where) if settings.site_field else ""
        if tabular:
            values.append(numbers(row, content, where))
        elif (text := text_of(row.get(text_field), text_field, where)) is None:
            records.skipped[site] = records.skipped.get(site, 0) + 1
            continue
        else:
            records.texts.append(text)
        if settings.label_field:
            records.labels.append(name_of(row, settings.label_field, where))
        if settings.site_field:
            records.sites.append(site)
        records.units.append(name_of(row, settings.unit_field, where) if settings.unit_field else str(number))
    if not len(records):
        raise DataError(f"{settings.source}: no row holds any text in the field {text_field!r}")
    if tabular:
        records.values = np.array(values)
    return records


def require_fields(row: Row, named: Sequence[str], where: str) -> None:
    """Check that a row has the fields.

    Raises:
        DataError: one is missing; the message lists the fields there are, near names first.
    """
    for name in named:
        if name not in row:
            raise DataError(f"{where}: no field {name!r}; {choices(name, row)}")


def numbers(row: Row, fields: Sequence[str], where: str) -> list[float]:
    """A row's features as floats; null and the empty string are NaN.

    Raises:
        DataError: a field is missing or not a number.
    """
    found = []
    for name in fields:
        value = row.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            found.append(float("nan"))
            continue
        try:
            if not isinstance(value, str | int | float):
                raise ValueError
            found.append(float(value))
        except (ValueError, OverflowError) as exc:
            short = repr(value)[:40]
            raise DataError(f"{where}: the feature {name!r} must be a number, not {short}") from exc
    return found


def text_of(value: object, name: str, where: str) -> str | None:
    """A text as it stands; None for one that is missing or blank.

    Raises:
        DataError: it is no text, or holds half a character.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise DataError(f"{where}: the field {name!r} must be text, not a {type(value).__name__}")
    _check_unicode(value, name, where)
    return value if value.strip() else None


def name_of(row: Row, name: str, where: str) -> str:
    """The name or number in a field, as text without blanks around it.

    Raises:
        DataError: there is none, or it holds half a character.
    """
    value = row.get(name)
    if value is None or value != value or isinstance(value, dict | list) or not str(value).strip():
        raise DataError(f"{where}: the field {name!r} must hold a name or a number")
    _check_unicode(str(value), name, where)
    return str(value).strip()


def _check_unicode(value: str, name: str, where: str) -> None:
    # JSON can spell half of a surrogate pair, which no UTF-8 file can hold.
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise DataError(
            f"{where}: the field {name!r} holds half a character (a lone surrogate); mend the text"
        ) from exc
