"""Tables as tokens: every feature has its own bins and a token for each, so that a token encodes feature and value.

A bin's edges reveal something about the values they were computed from. They come from public knowledge alone: declared
ranges, or quantiles of a public reference table that no site trains on. Private rows never determine an edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglm.autoglm.errors import DataError


@dataclass(frozen=True, kw_only=True)
class TableEncoder:
    """Maps rows of F numbers to F + 1 token ids.

    Feature f with value v becomes token ``f * (bins + 1) + bin(v)``; a missing value (NaN) has the token after the last
    bin; values beyond the edges fall into the outer bins. The last token of each row is ``end_id``: the model reads a
    row from left to right and classifies there.

    Attributes:
        names: Names of the F features, in the order of the tokens.
        edges: Inner edges of each feature's bins, bins - 1 each, ascending; equal edges leave the bin between them
            unused.
        origin: Origin of the edges in words, for reports.

    Raises:
        DataError: The edges do not fit the names, are not finite or do not ascend.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    origin: str

    def __post_init__(self) -> None:
        widths = {len(edges) for edges in self.edges}
        if len(self.names) != len(self.edges) or len(widths) != 1 or not self.names:
            raise DataError("a table encoder needs one list of edges for each feature, all of the same length")
        if not all(np.isfinite(edges).all() and list(edges) == sorted(edges) for edges in self.edges):
            raise DataError("a table encoder's edges must be finite and ascending")

    @property
    def bins(self) -> int:
        """Number of bins of each feature, without the one for missing values."""
        return len(self.edges[0]) + 1

    @property
    def length(self) -> int:
        """Number of tokens of a row."""
        return len(self.names) + 1

    @property
    def end_id(self) -> int:
        """The token that ends every row."""
        return len(self.names) * (self.bins + 1)

    @property
    def pad_id(self) -> int:
        """The padding token; rows are all of one length, so it never occurs, but models require one."""
        return self.end_id + 1

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return self.end_id + 2

    def bin_positions(self) -> npt.NDArray[np.float64]:
        """Return the position of each of a feature's bins + 1 tokens, (bins + 1,), float64, with mean 0 and variance 1.

        The bins are spaced evenly in their order; a missing value is in the middle, at 0.
        """
        spaced = np.linspace(-1.0, 1.0, self.bins)
        return np.append(spaced / spaced.std(), 0.0)

    def encode(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
        """Encode rows (N, F), float64, NaN where a value is missing, as token ids (N, F + 1), int32.

        Raises:
            DataError: The rows have another number of features.
        """
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise DataError(f"the encoder takes rows of {len(self.names)} features, not an array of {values.shape}")
        ids = np.full((len(values), self.length), self.end_id, dtype=np.int32)
        for f, edges in enumerate(self.edges):
            column = values[:, f]
            bins = np.where(np.isnan(column), self.bins, np.searchsorted(edges, column, side="right"))
            ids[:, f] = f * (self.bins + 1) + bins
        return ids


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
