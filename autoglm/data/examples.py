"""Token sequences in memory: a padded matrix in the smallest integer type, converted to int64 batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from fedglm.autoglm.errors import DataError


@dataclass(frozen=True, eq=False, kw_only=True)
class Examples:
    """N sequences of at most T tokens, padded to the right.

    Attributes:
        input_ids: Token ids, (N, T), uint8, int16 or int32.
        lengths: Number of tokens of each sequence without padding, (N,), int32.
        labels: Class of each sequence (for a language model the document's group), (N,), int64.
        units: Privacy unit of each sequence, (N,), int64: sequences of one unit have the same number, at every site.
    """

    input_ids: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor
    units: torch.Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the model's input for some sequences: ``input_ids``, ``attention_mask`` (B, t), ``labels`` (B,).

        All are int64. t is the length of the longest of the B sequences, so that short texts are cheap.
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
        """Return a copy of some sequences, in the given order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return Examples(
            input_ids=self.input_ids[chosen],
            lengths=self.lengths[chosen],
            labels=self.labels[chosen],
            units=self.units[chosen],
        )


def concatenate(parts: Sequence[Examples]) -> Examples:
    """Concatenate several sites' sequences, for a pooled baseline or a metric over all sites.

    Raises:
        DataError: There is nothing to concatenate.
    """
    if not parts:
        raise DataError("no examples to concatenate")
    return Examples(
        input_ids=torch.cat([part.input_ids for part in parts]),
        lengths=torch.cat([part.lengths for part in parts]),
        labels=torch.cat([part.labels for part in parts]),
        units=torch.cat([part.units for part in parts]),
    )


def select_evenly(examples: Examples, share: float) -> Examples:
    """Select a share of the examples at equal distances, at least one."""
    wanted = max(1, round(share * len(examples)))
    if wanted >= len(examples):
        return examples
    return examples.select(np.linspace(0, len(examples) - 1, wanted).round().astype(np.int64))
