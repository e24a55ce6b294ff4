"""Classification of texts, or of the rows of a table: one class per sequence, read at its last token."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch.nn import functional

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.records import Records, number_names
from fedglm.autoglm.data.splits import Indices
from fedglm.autoglm.data.texts import Sequences, smallest_type, truncate_texts
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.autoglm.tasks.task import Batch, Task
from fedglm.autoglm.tasks.text import Cutter, TextTask
from fedglm.inference.inputs.tables import TableEncoder
from fedglm.inference.inputs.task import Kind

_BIN_SPREAD = 0.1  # five times GLM's own; 0.05 to 0.2 did about equally well


@dataclass(frozen=True, eq=False, kw_only=True)
class Classification(Task):
    """Predict the class of a whole sequence; measured by accuracy.

    Attributes:
        labels: Class names in the order of their numbers.
    """

    metric: ClassVar = "accuracy"
    reads_labels: ClassVar[bool] = True

    labels: tuple[str, ...]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of their numbers."""
        return self.labels

    def outputs(self, _vocabulary: int) -> int:
        """Return the number of classes."""
        return len(self.labels)

    def label_ids(self, records: Records) -> Indices:
        """Return the number of each record's class, (N,), int64."""
        return number_names(records.labels, self.labels)

    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy of each sequence's class, (B,)."""
        return functional.cross_entropy(logits, batch["labels"], reduction="none")

    def is_correct(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return whether the class with the largest logit is the sequence's own, (B,), bool."""
        return logits.argmax(-1) == batch["labels"]

    def prediction_counts(self, examples: Examples) -> torch.Tensor:
        """Return ones, (N,), float64: one class per sequence."""
        return torch.ones(len(examples), dtype=torch.float64)

    def evaluation(self, loss: float, accuracy: float, count: int) -> Evaluation:
        """Make the evaluation from loss and accuracy over `count` records."""
        return Evaluation(loss=loss, metric=accuracy, count=count)


@dataclass(frozen=True, eq=False, kw_only=True)
class TextClassification(Classification, TextTask):
    """Predict the class of a text."""

    kind: ClassVar[Kind] = "text-classification"
    appends_end: ClassVar[bool] = True
    cut: ClassVar[Cutter] = staticmethod(truncate_texts)

    @classmethod
    def from_fields(cls, labels: list[str], table: dict[str, Any] | None, **fields: Any) -> Self:
        """Make the task from the fields that ``to_json`` wrote."""
        if table:
            raise ValueError("a classifier of texts has no table")
        return cls(labels=tuple(labels), **fields)


@dataclass(frozen=True, eq=False, kw_only=True)
class TabularClassification(Classification):
    """Predict the class of a table's row.

    Attributes:
        table: Encoder of the rows.
    """

    kind: ClassVar[Kind] = "tabular-classification"

    table: TableEncoder

    @classmethod
    def for_table(cls, table: TableEncoder, labels: tuple[str, ...]) -> Self:
        """Make the task of a table with an encoder and class names."""
        return cls(
            length=table.length,
            vocab_size=table.vocab_size,
            pad_id=table.pad_id,
            bos_id=table.end_id,
            eos_id=table.end_id,
            labels=labels,
            table=table,
        )

    def sequences(self, records: Records) -> Sequences:
        """Return the records' token sequences, one per row."""
        ids = self.table.encode(records.values).astype(smallest_type(self.vocab_size))
        lengths = np.full(len(ids), self.length, dtype=np.int32)
        return Sequences(ids, lengths, np.arange(len(ids)))

    def initial_embeddings(self, width: int) -> torch.Tensor:
        """Initialise a feature's bins in their order: token (f, b) at u_f + z_b v_f, u_f and v_f drawn per feature.

        Bins drawn independently must each be learned from the few rows that fall into them. In order they share from
        the start what is learned. On breast-cancer (glm-0.1m, 150 steps, mean of 12 seeds) held-out accuracy rises from
        94.4 to 95.9 % and the loss falls from 0.27 to 0.19.
        """
        features, tokens = len(self.table.names), self.table.bins + 1
        bin_positions = torch.tensor(self.table.bin_positions(), dtype=torch.float32)[:, None]
        where, slope = _BIN_SPREAD * torch.randn(2, features, 1, width)
        rows: torch.Tensor = where + bin_positions * slope
        return rows.reshape(features * tokens, width)

    def table_fields(self) -> dict[str, Any]:
        """Return names, edges and their origin."""
        return {"names": self.table.names, "edges": self.table.edges, "origin": self.table.origin}

    @classmethod
    def from_fields(cls, labels: list[str], table: dict[str, Any] | None, **fields: Any) -> Self:
        """Make the task from the fields that ``to_json`` wrote."""
        if table is None:
            raise ValueError("a classifier of tables has one")
        edges = tuple(map(tuple, table["edges"]))
        encoder = TableEncoder(names=tuple(table["names"]), edges=edges, origin=table["origin"])
        return cls(labels=tuple(labels), table=encoder, **fields)

    def save_tokenizer(self, _folder: Path) -> None:
        """Do nothing: ``task.json`` holds the bins."""

    def with_tokenizer(self, _folder: str) -> Self:
        """Return the task itself."""
        return self
