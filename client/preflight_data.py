"""Checks of a site's records: the file parses and holds what `site.toml` says. A finding counts rows; it quotes none.

Even the names of a file's fields are not listed: in a file without a line of names they would be somebody's record.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

from fedglm.autoglm.bundled import BUNDLES
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.reading import Row, read_rows
from fedglm.autoglm.records import name_of, numbers, text_of
from fedglm.client.findings import Finding, failure, ok
from fedglm.client.site_folder import Site
from fedglm.client.site_settings import DataSection

_LEAST_UNITS = 2  # one to train on, one to hold out


@dataclass(frozen=True)
class Counted:
    """A finding, and about how many units the site holds, where the records could be read."""

    finding: Finding
    units: int | None = None


def check_data(site: Site) -> Counted:
    """Read all records once."""
    data = site.settings.data
    if data.source is None:
        return Counted(failure("data", "site.toml does not say where the records are", "give source in [data]"))
    try:
        rows, units = _built_in(site.source) if data.is_builtin else _file(site.source, data)
        for name, path in (("public_reference", data.public_reference), ("model.path", site.settings.model.path)):
            if path is not None and not site.path(path).exists():
                raise _Unfit(f"{name}: {site.path(path)} is not there", "copy it there, or correct site.toml")
    except DataError as exc:
        return Counted(failure("data", str(exc), "correct the file, or [data] in site.toml"))
    except _Unfit as exc:
        return Counted(failure("data", exc.said, exc.remedy))
    if units < _LEAST_UNITS:
        remedy = "name in data.unit_field the field that tells persons or documents apart"
        return Counted(failure("data", f"{rows} rows, all of one unit: one more is needed to hold out", remedy))
    part = f"; of which this site is part {data.share}" if data.share else ""
    unit = data.unit_field or "units"
    said = f"{rows} rows, {units} {unit if unit == 'units' else f'values of {unit}'}{part}"
    return Counted(ok("data", said), units // data.part[1] if data.part else units)


class _Unfit(Exception):
    """The records are not what `site.toml` says."""

    def __init__(self, said: str, remedy: str) -> None:
        super().__init__(said)
        self.said, self.remedy = said, remedy


def _built_in(source: str) -> tuple[int, int]:
    records = BUNDLES[source](None).records
    return len(records), len(set(records.units))


def _file(source: str, data: DataSection) -> tuple[int, int]:
    """Rows that hold something, and units among them."""
    units: set[str] = set()
    rows = 0
    for line, row in read_rows(source):
        where = f"{Path(source).name}, line {line}"
        if not rows:
            _check_fields(row, data, where)
        if data.text_field is not None and text_of(row.get(data.text_field), data.text_field, where) is None:
            continue
        if data.label_field is not None:
            name_of(row, data.label_field, where)
        for name in data.feature_fields:
            if not _is_number(row, name):
                raise _Unfit(f"{where}: the feature {name!r} is no number", "correct it, or leave it empty")
        rows += 1
        units.add(name_of(row, data.unit_field, where) if data.unit_field else str(line))
    return rows, len(units)


def _check_fields(row: Row, data: DataSection, where: str) -> None:
    named = (data.text_field, data.label_field, data.unit_field, data.site_field, *data.feature_fields)
    for name in named:
        if name is not None and name not in row:
            near = difflib.get_close_matches(name, row, n=1, cutoff=0.75)
            hint = f"did you mean {near[0]!r}?" if near else "correct [data] in site.toml, or name the fields in line 1"
            raise _Unfit(f"{where}: of {len(row)} fields none is called {name!r}", hint)


def _is_number(row: Row, name: str) -> bool:
    try:
        numbers(row, (name,), "")
    except DataError:  # it quotes the value
        return False
    return True
