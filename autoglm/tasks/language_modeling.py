"""Language modelling: every token of a document but the first is predicted from those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch.nn import functional

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.records import Records, number_names
from fedglm.autoglm.data.splits import Indices
from fedglm.autoglm.data.texts import cut_windows
from fedglm.autoglm.tasks.evaluation import Evaluation, perplexity
from fedglm.autoglm.tasks.task import Batch
from fedglm.autoglm.tasks.text import Cutter, TextTask
from fedglm.inference.inputs.task import Kind


@dataclass(frozen=True, eq=False, kw_only=True)
class LanguageModeling(TextTask):
    """Predict each token from those before it; measured by perplexity."""

    kind: ClassVar[Kind] = "language-model"
    metric: ClassVar = "perplexity"
    reads_labels: ClassVar[bool] = False
    appends_end: ClassVar[bool] = False
    cut: ClassVar[Cutter] = staticmethod(cut_windows)

    @property
    def classes(self) -> tuple[str, ...]:
        """Empty: there are no classes."""
        return ()

    def outputs(self, vocabulary: int) -> int:
        """Return the size of the vocabulary."""
        return vocabulary

    def label_ids(self, records: Records) -> Indices:
        """Return the number of each document's group, (N,), int64; 0 where they have none."""
        if not records.labels:
            return np.zeros(len(records), dtype=np.int64)
        return number_names(records.labels, sorted(set(records.labels)))

    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the mean cross-entropy over each sequence's predicted tokens, (B,); 0 for a sequence of one token."""
        targets, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
        scores = logits[:, :-1].flatten(0, 1)
        losses = functional.cross_entropy(scores, targets.flatten(), reduction="none").view_as(targets)
        return (losses * mask).sum(1) / mask.sum(1).clamp(min=1)

    def is_correct(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return False for each sequence, (B,): nothing is classified."""
        return torch.zeros(len(logits), dtype=torch.bool, device=batch["input_ids"].device)

    def prediction_counts(self, examples: Examples) -> torch.Tensor:
        """Return the number of each sequence's tokens but the first, (N,), float64."""
        return (examples.lengths - 1).clamp(min=0).double()

    def evaluation(self, loss: float, _accuracy: float, count: int) -> Evaluation:
        """Make the evaluation from the loss over `count` predicted tokens."""
        return Evaluation(loss=loss, metric=perplexity(loss), count=count)

    @classmethod
    def from_fields(cls, labels: list[str], table: dict[str, Any] | None, **fields: Any) -> Self:
        """Make the task from the fields that ``to_json`` wrote."""
        if labels or table:
            raise ValueError("a language model has no classes and no table")
        return cls(**fields)
