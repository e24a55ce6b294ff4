"""Records from the data settings: the built-in or file, the kind of task, and bins from public knowledge."""

from __future__ import annotations

import numpy as np

from fedglm.autoglm.data.bins import bins_from_ranges, bins_from_reference
from fedglm.autoglm.data.bundled import BUNDLES, Bundle
from fedglm.autoglm.data.reading import check_file, read_rows
from fedglm.autoglm.data.records import Records, read_numbers, read_records, require_fields
from fedglm.autoglm.data.row_faults import RowFaults, RowPlace
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.settings import DataSettings
from fedglm.core.suggestions import list_choices
from fedglm.inference.inputs.tables import TableEncoder
from fedglm.inference.inputs.task import Kind

DEFAULT_BINS = 16


def read_source(settings: DataSettings, faults: RowFaults | None = None) -> tuple[Kind, Records, TableEncoder | None]:
    """Read the kind of task, the records, and for a table its encoder.

    Args:
        settings: Settings with the source.
        faults: Counts a file's rows that cannot be used, which are then left out; without it they are errors.

    Raises:
        DataError: The settings do not fit the source, or the records cannot be used.
    """
    if (bundle := _find_bundle(settings)) is not None:
        return bundle.kind, bundle.records, bundle.table
    check_source(settings.source)
    kind = infer_kind(settings)
    if kind != "language-model" and not settings.label_field:
        raise DataError(f"{kind} needs a label_field: name the field that holds the class")
    table = _place_bins(settings) if kind == "tabular-classification" else None
    classes = frozenset(() if kind == "language-model" else settings.class_names)
    return kind, read_records(settings, tabular=table is not None, classes=classes, faults=faults), table


def read_public_source(settings: DataSettings) -> tuple[Kind, tuple[str, ...], TableEncoder | None]:
    """Read the kind of task, its classes, and for a table its encoder: all that must be known without private rows.

    A file need not exist. The classes of a built-in are known with it.

    Raises:
        DataError: Classes, fields or ranges are missing in the settings.
    """
    if (bundle := _find_bundle(settings)) is not None:
        named = () if bundle.kind == "language-model" else tuple(sorted(set(bundle.records.labels)))
        return bundle.kind, named, bundle.table
    kind = infer_kind(settings)
    if kind == "language-model":
        return kind, (), None
    if not settings.class_names:
        raise DataError(f"{kind} at several sites needs class_names: no site's rows may say which classes there are")
    return kind, settings.class_names, _place_bins(settings) if kind == "tabular-classification" else None


def is_path(name: str) -> bool:
    """Return whether a source is a path, and not the name of a built-in."""
    return any(mark in name for mark in "./\\")


def check_source(source: str) -> None:
    """Check that a source is a built-in's name, or can be a path.

    Raises:
        DataError: The source is neither; near names are listed.
    """
    if source not in BUNDLES and not is_path(source):
        raise DataError(f"no built-in data are called {source!r}; {list_choices(source, BUNDLES)}; or a file")


def check_readable(source: str) -> None:
    """Check that a source is a built-in's name, or a file that exists and is of a kind that can be read.

    It opens nothing and imports no torch, so that mistakes can be reported before either.

    Raises:
        DataError: The source is neither.
    """
    check_source(source)
    if is_path(source):
        check_file(source)


def infer_kind(settings: DataSettings) -> Kind:
    """Infer the kind of task from the settings of a file."""
    if settings.task != "auto":
        return settings.task
    if settings.feature_fields:
        return "tabular-classification"
    return "text-classification" if settings.label_field else "language-model"


def _find_bundle(settings: DataSettings) -> Bundle | None:
    """Return the built-in that the settings name; None for a file."""
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


def _place_bins(settings: DataSettings) -> TableEncoder:
    """Compute the bins of a user's table from declared ranges or a public file, never from the private rows."""
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
            rows.append(read_numbers(row, names, place))
        origin = f"quantiles of {len(rows)} public rows in {settings.public_reference}"
        return bins_from_reference(names, np.array(rows), bins, origin=origin)
    if missing := [name for name in names if name not in settings.feature_ranges]:
        raise DataError(
            f"no range is declared for {', '.join(map(repr, missing[:5]))}: bins must not be placed by private rows; "
            "declare feature_ranges from public knowledge, or name a public_reference file"
        )
    return bins_from_ranges({name: settings.feature_ranges[name] for name in names}, bins)
