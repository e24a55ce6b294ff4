"""Token sequences in memory: a padded matrix in the smallest integer type, widened to int64 batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedglm.autoglm.errors import DataError


@dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
    """N sequences of at most T tokens, padded to the right.

    ``input_ids`` (N, T) is uint8, int16 or int32; ``lengths`` (N,) int32 counts each sequence's own tokens; ``labels``
    (N,) int64 holds classes (for a language model the document's group); ``units`` (N,) int64 says whose privacy is at
    stake: sequences of one unit share a number, the same one at every site.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor
    units: torch.Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        """The model's input for some sequences: ``input_ids`` and ``attention_mask`` (B, t), ``labels`` (B,), int64.

        t is the length of the longest of the B sequences, so that short texts cost little.
        """
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        lengths = self.lengths[chosen]
        longest = int(lengths.max()) if len(chosen) else 0
        return {
            "input_ids": self.input_ids[chosen, :longest].to(torch.int64),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).to(torch.int64),
            "labels": self.labels[chosen],
        }

    def select(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> Examples:
        """A copy of some sequences, in the order given."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Examples(
            input_ids=self.input_ids[chosen],
            lengths=self.lengths[chosen],
            labels=self.labels[chosen],
            units=self.units[chosen],
        )


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Several sites' sequences as one (for a pooled baseline, or a metric over the whole federation).

    Raises:
        DataError: there is nothing to concatenate.
    """
    if not parts:
        raise DataError("no examples to concatenate")
    return Examples(
        input_ids=torch.cat([part.input_ids for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        units=torch.cat([part.units for part in parts]),
    )
