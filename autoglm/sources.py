"""From what a user says about the data to records: the built-in or file, the task, and bins from public knowledge."""

from __future__ import annotations

import numpy as np

from fedglm.autoglm.bundled import BUNDLES
from fedglm.autoglm.errors import DataError, choices
from fedglm.autoglm.reading import read_rows
from fedglm.autoglm.records import Records, numbers, read_records, require_fields
from fedglm.autoglm.settings import DataSettings
from fedglm.autoglm.tables import TableEncoder, bins_from_ranges, bins_from_reference
from fedglm.autoglm.tasks import Kind

DEFAULT_BINS = 16


def read_source(settings: DataSettings) -> tuple[Kind, Records, TableEncoder | None]:
    """The kind of task, the records, and for a table how it becomes tokens.

    Raises:
        DataError: the settings do not fit the source, or the records cannot be used.
    """
    if settings.source in BUNDLES:
        bundle = BUNDLES[settings.source](settings.bins)
        of_files = ("text_field", "label_field", "unit_field", "site_field", "feature_fields", "feature_ranges")
        for name in (*of_files, "public_reference", "class_names"):
            if getattr(settings, name):
                raise DataError(f"{settings.source!r} knows its own fields: leave {name} out")
        if settings.task not in ("auto", bundle.kind):
            raise DataError(f"{settings.source!r} is for {bundle.kind}, not {settings.task}")
        return bundle.kind, bundle.records, bundle.table
    if not any(mark in settings.source for mark in "./\\"):
        raise DataError(
            f"no built-in data are called {settings.source!r}; {choices(settings.source, BUNDLES)}; or a file"
        )
    kind = _kind(settings)
    if kind != "language-model" and not settings.label_field:
        raise DataError(f"{kind} needs a label_field: name the field that holds the class")
    if kind != "tabular-classification":
        return kind, read_records(settings, tabular=False), None
    table = _bins(settings)
    return kind, read_records(settings, tabular=True), table


def _kind(settings: DataSettings) -> Kind:
    if settings.task != "auto":
        return settings.task
    if settings.feature_fields:
        return "tabular-classification"
    return "text-classification" if settings.label_field else "language-model"


def _bins(settings: DataSettings) -> TableEncoder:
    """Bins of a user's table: from declared ranges or a public file, never from the private rows."""
    names, bins = settings.feature_fields, settings.bins or DEFAULT_BINS
    if not names:
        raise DataError("tabular-classification needs feature_fields: name the numeric fields")
    if len(set(names)) != len(names):
        raise DataError("feature_fields names a field twice")
    if settings.public_reference:
        rows = []
        for number, row in read_rows(settings.public_reference):
            where = f"{settings.public_reference}, line {number}"
            require_fields(row, names, where)
            rows.append(numbers(row, names, where))
        origin = f"quantiles of {len(rows)} public rows in {settings.public_reference}"
        return bins_from_reference(names, np.array(rows), bins, origin=origin)
    if missing := [name for name in names if name not in settings.feature_ranges]:
        raise DataError(
            f"no range is declared for {', '.join(map(repr, missing[:5]))}: bins must not be placed by private rows; "
            "declare feature_ranges from public knowledge, or name a public_reference file"
        )
    return bins_from_ranges({name: settings.feature_ranges[name] for name in names}, bins)
