"""Checks of a site's records: the file parses and holds what `site.toml` says. A finding counts rows; it quotes none.

Even the names of a file's fields are not listed: in a file without a line of names they would be somebody's record.

Rows that cannot be used keep no node from starting, for by that the server would learn of them: they are warnings, and
are left out. What is wrong with the file as a whole is a failure.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fedglm.autoglm.data.row_faults import Reason, RowFaults
from fedglm.client.site.folder import Site
from fedglm.client.site.row_counts import Rows, UnfitError, count_rows
from fedglm.client.site.settings import DataSection
from fedglm.core.findings import Finding, failure, ok, warning

_MIN_UNITS = 2  # one to train on, one to hold out
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
    """The findings, and about how many units the site holds, where the records could be read."""

    findings: tuple[Finding, ...]
    units: int | None = None


def check_data(site: Site) -> Counted:
    """Read all records once."""
    data = site.settings.data
    try:
        rows = count_rows(site)
        for name, path in (("public_reference", data.public_reference), ("model.path", site.settings.model.path)):
            if path is not None and not site.path(path).exists():
                raise UnfitError(f"{name}: {site.path(path)} is not there", "copy it there, or correct site.toml")
    except UnfitError as exc:
        return Counted((failure("data", exc.detail, exc.remedy),))
    part = f"; of which this site is part {data.share}" if data.share else ""
    unit = "units" if data.unit_field is None else f"values of {data.unit_field}"
    detail = f"{rows.usable} rows, {rows.units} {unit}{part}"
    if rows.units < _MIN_UNITS:
        remedy = "name in data.unit_field the field that tells persons or documents apart"
        first = warning("data", f"{detail}: one is needed to train on and one to hold out", remedy)
    else:
        first = ok("data", detail)
    units = rows.units // data.part[1] if data.part else rows.units
    return Counted((first, *_of_fields(data, rows), *_of_rows(rows.faults)), units)


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
