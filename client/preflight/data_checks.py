"""Checks of a site's records: the file parses and holds what `site.toml` says. A finding counts rows; it quotes none.

Even the names of a file's fields are not listed: in a file without a line of names they would be somebody's record.

Rows that cannot be used keep no node from starting, for by that the server would learn of them: they are warnings, and
are left out. What is wrong with the file as a whole is a failure.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.reading import MissingField, Row, read_rows
from fedglm.autoglm.data.records import class_of, name_of, numbers, text_of
from fedglm.autoglm.data.row_faults import Place, Reason, RowError, RowFaults
from fedglm.autoglm.errors import DataError
from fedglm.client.site.folder import Site
from fedglm.client.site.settings import DataSection
from fedglm.core.findings import Finding, failure, ok, warning

HARMLESS: Final[frozenset[Reason]] = frozenset({"blank"})
"""Rows that say nothing: to leave them out loses nothing."""

_LEAST_UNITS = 2  # one to train on, one to hold out
_CORRECT = "correct the file, or [data] in site.toml"
_REMEDIES: Final[MappingProxyType[Reason, str]] = MappingProxyType(
    {
        "blank": "nothing, where nothing was written",
        "class": "correct them, or add their class to data.class_names and to the scenario",
        "encoding": "save the file as UTF-8",
        "length": "cut such a record in parts",
        "number": "correct them, or leave the value empty",
        "syntax": "quote values that hold quotes or delimiters; where they hold line breaks, save the file as JSONL or "
        "give line_breaks = true in [data]",
        "text": "make the field a text in each row",
        "unit": "name the unit in each row",
    }
)


@dataclass(frozen=True)
class Counted:
    """What was found, and about how many units the site holds, where the records could be read."""

    findings: tuple[Finding, ...]
    units: int | None = None


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


class UnfitError(Exception):
    """The records as a whole are not what `site.toml` says.

    Attributes:
        said: What is wrong, without a word of a record.
        remedy: What helps.
    """

    def __init__(self, said: str, remedy: str) -> None:
        super().__init__(said)
        self.said, self.remedy = said, remedy


def check_data(site: Site) -> Counted:
    """Read all records once."""
    data = site.settings.data
    try:
        rows = count_rows(site)
        for name, path in (("public_reference", data.public_reference), ("model.path", site.settings.model.path)):
            if path is not None and not site.path(path).exists():
                raise UnfitError(f"{name}: {site.path(path)} is not there", "copy it there, or correct site.toml")
    except UnfitError as exc:
        return Counted((failure("data", exc.said, exc.remedy),))
    part = f"; of which this site is part {data.share}" if data.share else ""
    unit = "units" if data.unit_field is None else f"values of {data.unit_field}"
    said = f"{rows.usable} rows, {rows.units} {unit}{part}"
    if rows.units < _LEAST_UNITS:
        remedy = "name in data.unit_field the field that tells persons or documents apart"
        first = warning("data", f"{said}: one is needed to train on and one to hold out", remedy)
    else:
        first = ok("data", said)
    units = rows.units // data.part[1] if data.part else rows.units
    return Counted((first, *_of_fields(data, rows), *_of_rows(rows.faults)), units)


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
        place = Place(Path(source).name, line)
        try:
            unit = _unit(row, data, classes, place, faults)
        except RowError as exc:
            faults.count(exc)
            continue
        units.add(unit)
        usable += 1
    return Rows(usable, len(units), faults, tuple(name for name in named if name in absent))


def _unit(row: Row, data: DataSection, classes: frozenset[str], place: Place, faults: RowFaults) -> str:
    """Whose a row is that can be used; raises RowError for another."""
    if data.text_field is not None and text_of(row.get(data.text_field), data.text_field, place) is None:
        raise RowError("blank", place, "no text")
    if data.label_field is not None:
        class_of(row, data.label_field, place, classes)
    unit = name_of(row, data.unit_field, place) if data.unit_field else str(place.line)
    numbers(row, data.feature_fields, place, faults)
    return unit


def _of_fields(data: DataSection, rows: Rows) -> list[Finding]:
    """What `site.toml` should say otherwise."""
    found = [warning("data", f"no row has a field {name!r}", "correct [data] in site.toml") for name in rows.absent]
    if data.label_field is not None and not data.class_names:
        remedy = f"list in data.class_names all that {data.label_field} may hold"
        found.append(warning("data", "site.toml names no classes, so that runs that tell classes are refused", remedy))
    return found


def _of_rows(faults: RowFaults) -> list[Finding]:
    """A warning for each kind of row that cannot be used."""
    found = []
    for reason in sorted(faults.counts):
        left_out = "" if reason == "number" else ": left out in every run"
        found.append(warning("data", faults.describe(reason) + left_out, _REMEDIES[reason]))
    return found


def _hint(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]!r}?" if near else "correct [data] in site.toml, or name the fields in line 1"
