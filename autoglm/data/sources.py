"""From what a user says about the data to records: the built-in or file, the task, and bins from public knowledge."""

from __future__ import annotations

import numpy as np

from fedglm.autoglm.data.bundled import BUNDLES, Bundle
from fedglm.autoglm.data.reading import read_rows
from fedglm.autoglm.data.records import Records, numbers, read_records, require_fields
from fedglm.autoglm.data.row_faults import RowFaults, RowPlace
from fedglm.autoglm.data.tables import TableEncoder, bins_from_ranges, bins_from_reference
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.settings import DataSettings, Kind
from fedglm.core.suggestions import list_choices

DEFAULT_BINS = 16


def read_source(settings: DataSettings, faults: RowFaults | None = None) -> tuple[Kind, Records, TableEncoder | None]:
    """The kind of task, the records, and for a table how it becomes tokens.

    Args:
        settings: name the source.
        faults: counts a file's rows that cannot be used, which are then left out; without it they are errors.

    Raises:
        DataError: the settings do not fit the source, or the records cannot be used.
    """
    if (bundle := _bundle(settings)) is not None:
        return bundle.kind, bundle.records, bundle.table
    check_source(settings.source)
    kind = kind_of(settings)
    if kind != "language-model" and not settings.label_field:
        raise DataError(f"{kind} needs a label_field: name the field that holds the class")
    table = _bins(settings) if kind == "tabular-classification" else None
    classes = frozenset(() if kind == "language-model" else settings.class_names)
    return kind, read_records(settings, tabular=table is not None, classes=classes, faults=faults), table


def public_source(settings: DataSettings) -> tuple[Kind, tuple[str, ...], TableEncoder | None]:
    """The kind of task, its classes, and for a table how it becomes tokens: what must be known without private rows.

    A file need not exist. The classes of a built-in are known with it.

    Raises:
        DataError: classes, fields or ranges are not in the settings.
    """
    if (bundle := _bundle(settings)) is not None:
        named = () if bundle.kind == "language-model" else tuple(sorted(set(bundle.records.labels)))
        return bundle.kind, named, bundle.table
    kind = kind_of(settings)
    if kind == "language-model":
        return kind, (), None
    if not settings.class_names:
        raise DataError(f"{kind} at several sites needs class_names: no site's rows may say which classes there are")
    return kind, settings.class_names, _bins(settings) if kind == "tabular-classification" else None


def is_path(name: str) -> bool:
    """Whether a word is a path, and not the name of something built in."""
    return any(mark in name for mark in "./\\")


def check_source(source: str) -> None:
    """Check that a source is a built-in's name, or can be a path.

    Raises:
        DataError: it is neither; near names are listed.
    """
    if source not in BUNDLES and not is_path(source):
        raise DataError(f"no built-in data are called {source!r}; {list_choices(source, BUNDLES)}; or a file")


def kind_of(settings: DataSettings) -> Kind:
    """The kind of task that the settings of a file ask for."""
    if settings.task != "auto":
        return settings.task
    if settings.feature_fields:
        return "tabular-classification"
    return "text-classification" if settings.label_field else "language-model"


def _bundle(settings: DataSettings) -> Bundle | None:
    """The built-in that the settings name, if they name one."""
    if settings.source not in BUNDLES:
        return None
    bundle = BUNDLES[settings.source](settings.bins)
    of_files = ("text_field", "label_field", "unit_field", "site_field", "feature_fields", "feature_ranges")
    for name in (*of_files, "public_reference", "class_names"):
        if getattr(settings, name):
            raise DataError(f"{settings.source!r} knows its own fields: leave {name} out")
    if settings.task not in ("auto", bundle.kind):
        raise DataError(f"{settings.source!r} is for {bundle.kind}, not {settings.task}")
    return bundle


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
            place = RowPlace(settings.public_reference, number)
            require_fields(row, names, place)
            rows.append(numbers(row, names, place))
        origin = f"quantiles of {len(rows)} public rows in {settings.public_reference}"
        return bins_from_reference(names, np.array(rows), bins, origin=origin)
    if missing := [name for name in names if name not in settings.feature_ranges]:
        raise DataError(
            f"no range is declared for {', '.join(map(repr, missing[:5]))}: bins must not be placed by private rows; "
            "declare feature_ranges from public knowledge, or name a public_reference file"
        )
    return bins_from_ranges({name: settings.feature_ranges[name] for name in names}, bins)
