"""Checks of a site's records: the file parses and matches `site.toml`. A finding counts rows; it quotes none.

Even the names of a file's fields are not listed: in a file without a header line they would be somebody's record.

Rows that cannot be used do not prevent a node from starting, because that would reveal them to the server: they are
warnings, and are left out. A fault of the file as a whole is a failure.
"""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from fedglm.autoglm.data.row_faults import Reason, RowFaults
from fedglm.client.site.folder import Site
from fedglm.client.site.row_counts import RecordsError, RowCounts, count_rows
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
class DataCheck:
    """Result of the check of the records.

    Attributes:
        findings: The findings.
        units: Approximate number of the site's units; None where the records could not be read.
    """

    findings: tuple[Finding, ...]
    units: int | None = None


def check_data(site: Site) -> DataCheck:
    """Read all records once, and check them against `site.toml`."""
    data = site.settings.data
    try:
        rows = count_rows(site)
        for name, path in (("public_reference", data.public_reference), ("model.path", site.settings.model.path)):
            if path is not None and not site.resolve(path).exists():
                raise RecordsError(f"{name}: {site.resolve(path)} is not there", "copy it there, or correct site.toml")
    except RecordsError as exc:
        return DataCheck((failure("data", exc.detail, exc.remedy),))
    share = f"; of which this site is part {data.share}" if data.share else ""
    unit = "units" if data.unit_field is None else f"values of {data.unit_field}"
    detail = f"{rows.usable} rows, {rows.units} {unit}{share}"
    if rows.units < _MIN_UNITS:
        remedy = "name in data.unit_field the field that tells persons or documents apart"
        first = warning("data", f"{detail}: one is needed to train on and one to hold out", remedy)
    else:
        first = ok("data", detail)
    units = rows.units // data.part[1] if data.part else rows.units
    return DataCheck((first, *_check_fields(data, rows), *_describe_faults(rows.faults)), units)


def _check_fields(data: DataSection, rows: RowCounts) -> list[Finding]:
    """Check that the rows have the fields in `site.toml`, and that it names the classes."""
    findings = [
        warning("data", f"no row has a field {name!r}", "correct [data] in site.toml") for name in rows.missing_fields
    ]
    if data.label_field is not None and not data.class_names:
        remedy = f"list in data.class_names all that {data.label_field} may hold"
        detail = "site.toml names no classes, so that runs that tell classes are refused"
        findings.append(warning("data", detail, remedy))
    return findings


def _describe_faults(faults: RowFaults) -> list[Finding]:
    """Make a warning for each reason why rows cannot be used."""
    findings = []
    for reason in sorted(faults.counts):
        consequence = "" if reason == "number" else ": left out in every run"
        findings.append(warning("data", faults.describe(reason) + consequence, _REMEDIES[reason]))
    return findings
