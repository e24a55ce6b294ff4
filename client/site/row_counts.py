"""Counts of a site's usable and unusable rows; no row is quoted."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.reading import MissingField, Row, read_rows
from fedglm.autoglm.data.records import read_class, read_name, read_numbers, read_text
from fedglm.autoglm.data.row_faults import Reason, RowError, RowFaults, RowPlace
from fedglm.autoglm.errors import DataError
from fedglm.client.site.folder import Site
from fedglm.client.site.settings import DataSection
from fedglm.core.errors import FedglmError
from fedglm.core.suggestions import find_near_names

HARMLESS: Final[frozenset[Reason]] = frozenset({"blank"})
"""Reasons of rows without content: leaving them out loses nothing."""

_CORRECT = "correct the file, or [data] in site.toml"


@dataclass(frozen=True)
class RowCounts:
    """Counts of a site's rows.

    Attributes:
        usable: Number of rows that can be used.
        units: Number of units among the usable rows.
        faults: Counts of the other rows, by reason.
        missing_fields: Fields that `site.toml` names and no row has.
    """

    usable: int
    units: int
    faults: RowFaults
    missing_fields: tuple[str, ...] = ()


class RecordsError(FedglmError):
    """The records as a whole do not match `site.toml`.

    Attributes:
        detail: Description of the fault, which quotes no record.
        remedy: Action that mends it.
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail, self.remedy = detail, remedy


def count_rows(site: Site) -> RowCounts:
    """Check each row against `site.toml` and count the usable and unusable ones.

    Raises:
        RecordsError: The file as a whole cannot be read or lacks a field, or `site.toml` names no file.
    """
    data = site.settings.data
    if data.source is None:
        raise RecordsError("site.toml does not say where the records are", "give source in [data]")
    if data.is_builtin:
        records = BUNDLES[site.source](None).records
        return RowCounts(len(records), len(set(records.units)), RowFaults())
    try:
        return _count_file(site.source, data)
    except MissingField as exc:
        raise RecordsError(
            f"of {len(exc.known)} fields none is called {exc.name!r}", _suggest_remedy(exc.name, exc.known)
        ) from exc
    except DataError as exc:
        raise RecordsError(str(exc), _CORRECT) from exc


def _count_file(source: str, data: DataSection) -> RowCounts:
    faults = data.make_row_faults()
    fields = (data.text_field, data.label_field, data.unit_field, data.site_field, *data.feature_fields)
    names = [name for name in fields if name is not None]
    classes, units, missing = frozenset(data.class_names), set[str](), set(names)
    usable = 0
    for line, row in read_rows(source, fields=names, faults=faults):
        missing -= row.keys()
        place = RowPlace(Path(source).name, line)
        try:
            unit = _read_unit(row, data, classes, place, faults)
        except RowError as exc:
            faults.count(exc)
            continue
        units.add(unit)
        usable += 1
    return RowCounts(usable, len(units), faults, tuple(name for name in names if name in missing))


def _read_unit(row: Row, data: DataSection, classes: frozenset[str], place: RowPlace, faults: RowFaults) -> str:
    """Return the name of a row's unit; raises RowError where the row cannot be used."""
    if data.text_field is not None and read_text(row.get(data.text_field), data.text_field, place) is None:
        raise RowError("blank", place, "no text")
    if data.label_field is not None:
        read_class(row, data.label_field, place, classes)
    unit = read_name(row, data.unit_field, place) if data.unit_field else str(place.line)
    read_numbers(row, data.feature_fields, place, faults)
    return unit


def _suggest_remedy(name: str, known: Sequence[str]) -> str:
    near = find_near_names(name, known, count=1, cutoff=0.75)
    return f"did you mean {near[0]!r}?" if near else "correct [data] in site.toml, or name the fields in line 1"
