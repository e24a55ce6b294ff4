"""A site's rows by what can be made of them: counted, and none quoted."""

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
"""Rows that say nothing: to leave them out loses nothing."""
_CORRECT = "correct the file, or [data] in site.toml"


@dataclass(frozen=True)
class Rows:
    """A site's rows by what can be made of them.

    Attributes:
        usable: How many can be used.
        units: Units among those.
        faults: The others.
        absent: Fields that `site.toml` names and no row has.
    """

    usable: int
    units: int
    faults: RowFaults
    absent: tuple[str, ...] = ()


class UnfitError(FedglmError):
    """The records as a whole are not what `site.toml` says.

    Attributes:
        detail: What is wrong, without a word of a record.
        remedy: What helps.
    """

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.detail, self.remedy = detail, remedy


def count_rows(site: Site) -> Rows:
    """Hold each row to `site.toml`.

    Raises:
        UnfitError: The file as a whole cannot be read, or lacks a field; or there is none.
    """
    data = site.settings.data
    if data.source is None:
        raise UnfitError("site.toml does not say where the records are", "give source in [data]")
    if data.is_builtin:
        records = BUNDLES[site.source](None).records
        return Rows(len(records), len(set(records.units)), RowFaults())
    try:
        return _of_file(site.source, data)
    except MissingField as exc:
        raise UnfitError(f"of {len(exc.known)} fields none is called {exc.name!r}", _hint(exc.name, exc.known)) from exc
    except DataError as exc:
        raise UnfitError(str(exc), _CORRECT) from exc


def _of_file(source: str, data: DataSection) -> Rows:
    faults = data.row_faults()
    fields = (data.text_field, data.label_field, data.unit_field, data.site_field, *data.feature_fields)
    named = [name for name in fields if name is not None]
    classes, units, absent = frozenset(data.class_names), set[str](), set(named)
    usable = 0
    for line, row in read_rows(source, fields=named, faults=faults):
        absent -= row.keys()
        place = RowPlace(Path(source).name, line)
        try:
            unit = _unit(row, data, classes, place, faults)
        except RowError as exc:
            faults.count(exc)
            continue
        units.add(unit)
        usable += 1
    return Rows(usable, len(units), faults, tuple(name for name in named if name in absent))


def _unit(row: Row, data: DataSection, classes: frozenset[str], place: RowPlace, faults: RowFaults) -> str:
    """Whose a row is that can be used; raises RowError for another."""
    if data.text_field is not None and read_text(row.get(data.text_field), data.text_field, place) is None:
        raise RowError("blank", place, "no text")
    if data.label_field is not None:
        read_class(row, data.label_field, place, classes)
    unit = read_name(row, data.unit_field, place) if data.unit_field else str(place.line)
    read_numbers(row, data.feature_fields, place, faults)
    return unit


def _hint(name: str, known: Sequence[str]) -> str:
    near = find_near_names(name, known, count=1, cutoff=0.75)
    return f"did you mean {near[0]!r}?" if near else "correct [data] in site.toml, or name the fields in line 1"
