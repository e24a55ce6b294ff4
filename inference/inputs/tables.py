"""Tables as tokens: every feature has its own bins and a token for each, so that a token encodes feature and value.

Where the edges come from is up to whoever trains: public knowledge alone (`autoglm/data/bins.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError


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
        InferenceError: The edges do not fit the names, are not finite or do not ascend.
    """

    names: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    origin: str

    def __post_init__(self) -> None:
        widths = {len(edges) for edges in self.edges}
        if len(self.names) != len(self.edges) or len(widths) != 1 or not self.names:
            raise InferenceError("a table encoder needs one list of edges for each feature, all of the same length")
        if not all(np.isfinite(edges).all() and list(edges) == sorted(edges) for edges in self.edges):
            raise InferenceError("a table encoder's edges must be finite and ascending")

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
            InferenceError: The rows have another number of features.
        """
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise InferenceError(
                f"the encoder takes rows of {len(self.names)} features, not an array of {values.shape}"
            )
        ids = np.full((len(values), self.length), self.end_id, dtype=np.int32)
        for f, edges in enumerate(self.edges):
            column = values[:, f]
            bins = np.where(np.isnan(column), self.bins, np.searchsorted(edges, column, side="right"))
            ids[:, f] = f * (self.bins + 1) + bins
        return ids
