"""Bins of a table's features, from public knowledge alone.

A bin's edges reveal something about the values they were computed from. They come from declared ranges, or quantiles of
a public reference table that no site trains on. Private rows never determine an edge.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedglm.autoglm.errors import DataError
from fedglm.inference.inputs.tables import TableEncoder


def bins_from_ranges(ranges: dict[str, tuple[float, float]], bins: int) -> TableEncoder:
    """Make bins of equal width within each feature's declared (low, high).

    Raises:
        DataError: A range is empty or not finite.
    """
    for name, (low, high) in ranges.items():
        if not (np.isfinite(low) and np.isfinite(high) and low < high):
            raise DataError(f"the range of feature {name!r} must be finite and ascending, not {low} to {high}")
    edges = tuple(tuple(np.linspace(low, high, bins + 1)[1:-1].tolist()) for low, high in ranges.values())
    return TableEncoder(names=tuple(ranges), edges=edges, origin="declared ranges")


def bins_from_reference(
    names: tuple[str, ...], reference: npt.NDArray[np.float64], bins: int, *, origin: str
) -> TableEncoder:
    """Make bins of equal count in a public reference table.

    Args:
        names: Names of the F features.
        reference: Values of the table, (N, F), float64, NaN where a value is missing.
        bins: Number of bins of each feature.
        origin: Description of the table.

    Raises:
        DataError: A feature has no finite value in the reference.
    """
    edges = []
    for f, name in enumerate(names):
        column = reference[:, f]
        column = np.sort(column[np.isfinite(column)])
        if not len(column):
            raise DataError(f"the public reference has no value of feature {name!r} to place bins by")
        edges.append(tuple(np.quantile(column, np.arange(1, bins) / bins).tolist()))
    return TableEncoder(names=names, edges=tuple(edges), origin=origin)
