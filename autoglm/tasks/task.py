"""What a model is trained for: how records become sequences, how a batch becomes losses, and how well a model does."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.data.splits import Indices
from fedglm.autoglm.data.texts import Sequences
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.settings import Kind
from fedglm.autoglm.tasks.evaluation import Evaluation

Batch = dict[str, torch.Tensor]
"""What ``Examples.batch`` makes."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Task(ABC):
    """What is learned, and what a model must know to learn it.

    Attributes:
        kind: the name of the task in settings and on disk.
        metric: what ``Evaluation.metric`` is.
        reads_labels: whether the records' labels are what is learned.
        length: tokens of the longest sequence.
        vocab_size: all token ids are below it.
        pad_id: token that fills shorter sequences.
        bos_id: token that begins a document.
        eos_id: token that ends a sequence.
    """

    kind: ClassVar[Kind]
    metric: ClassVar[Literal["perplexity", "accuracy"]]
    reads_labels: ClassVar[bool]

    length: int
    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int

    # --- from records to sequences

    @abstractmethod
    def sequences(self, records: Records) -> Sequences:
        """The records' token sequences, and the row that each is of."""

    @abstractmethod
    def label_ids(self, records: Records) -> Indices:
        """(rows,) the number of each record's label."""

    def examples(self, records: Records) -> tuple[Examples, Indices]:
        """The records as token sequences, whose units are numbered, and the row that each is of; there may be none."""
        sequences, units, labels = self.sequences(records), records.unit_ids(), self.label_ids(records)
        examples = Examples(
            input_ids=torch.from_numpy(sequences.ids),
            lengths=torch.from_numpy(sequences.lengths),
            labels=torch.from_numpy(labels[sequences.rows]),
            units=torch.from_numpy(units[sequences.rows]),
        )
        return examples, sequences.rows

    # --- the model

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; none for language modelling."""

    @abstractmethod
    def outputs(self, vocabulary: int) -> int:
        """Width of the output of a model with so many embedding rows."""

    def first_embeddings(self, _width: int) -> torch.Tensor | None:
        """(rows, width) float32, where the first embedding rows of a new model start; None leaves them as drawn."""
        return None

    # --- losses and measures

    @property
    def loss_bound(self) -> float:
        """A public bound by which reported losses are cut, in nats: that of a model which finds all outputs alike."""
        return math.log(max(8, self.outputs(self.vocab_size)))

    @abstractmethod
    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Cross-entropy of each sequence in nats, (B,), from a model's output in float32."""

    @abstractmethod
    def is_correct(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """(B,) bool, whether each sequence is classified correctly; a language model classifies none."""

    @abstractmethod
    def prediction_counts(self, examples: Examples) -> torch.Tensor:
        """(N,) float64, how many tokens or classes are predicted in each sequence."""

    @abstractmethod
    def evaluation(self, loss: float, accuracy: float, count: int) -> Evaluation:
        """Means as an evaluation; `accuracy` counts for classifiers alone."""

    def sequence_losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Cross-entropy of each sequence in nats, (B,) float32, with gradients.

        A language model's is the mean over the sequence's own predicted tokens, never over the batch's: that would tie
        one record's gradient to its neighbours' lengths, and per-record clipping would mean nothing.

        Args:
            model: what ``build_model`` made for this task.
            batch: what ``Examples.batch`` made, on any device.
        """
        return self.losses(*_logits(model, batch))

    def evaluate(self, model: torch.nn.Module, examples: Examples, *, batch_size: int = 64) -> Evaluation:
        """Loss and metric of a model in float32, without gradients or dropout; the model's mode is put back.

        Sequences of like length go together, in an order that their lengths alone decide, and sums are in float64.

        Raises:
            DataError: there are no examples.
        """
        if not len(examples):
            raise DataError("no examples to evaluate on")
        losses, correct = self.measure(model, examples, batch_size=batch_size)
        weights = self.prediction_counts(examples)
        count = int(weights.sum())
        return self.evaluation(float((losses * weights).sum()) / max(count, 1), float(correct.mean()), count)

    def measure(
        self, model: torch.nn.Module, examples: Examples, *, batch_size: int = 64
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of each sequence, (N,), and whether it was classified correctly, (N,); both float64.

        In float32, without gradients or dropout; the model's mode is put back.
        """
        order = torch.argsort(examples.lengths, stable=True)
        device, training = next(model.parameters()).device.type, model.training
        model.eval()
        losses, correct = torch.zeros(2, len(order), dtype=torch.float64)
        try:
            for first in range(0, len(order), batch_size):
                chosen = order[first : first + batch_size]
                with torch.no_grad(), torch.autocast(device, enabled=False):
                    logits, batch = _logits(model, examples.batch(chosen))
                    losses[chosen] = self.losses(logits, batch).double().cpu()
                    correct[chosen] = self.is_correct(logits, batch).double().cpu()
        finally:
            model.train(training)
        return losses, correct

    def pool(self, evaluations: Sequence[Evaluation]) -> Evaluation:
        """Several sites' evaluations as one, as if their examples had been evaluated together.

        Raises:
            DataError: there are none.
        """
        count = sum(part.count for part in evaluations)
        if not count:
            raise DataError("no evaluations to pool")
        loss = sum(part.loss * part.count for part in evaluations) / count
        accuracy = sum(part.metric * part.count for part in evaluations) / count
        return self.evaluation(loss, accuracy, count)

    # --- on disk

    def to_json(self) -> str:
        """Everything but the tokenizer, as ``task.json``; ``read_task`` reads it."""
        plain = {name: getattr(self, name) for name in ("kind", "length", "vocab_size", "pad_id", "bos_id", "eos_id")}
        return json.dumps(plain | {"labels": self.classes, "table": self.table_fields()}, indent=1)

    @classmethod
    @abstractmethod
    def from_fields(cls, labels: list[str], table: dict[str, Any] | None, **fields: Any) -> Self:
        """The task of what ``to_json`` wrote, without its kind and its tokenizer.

        Args:
            labels: class names.
            table: as ``table_fields`` gives it.
            fields: the numbers that every task has.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """

    @abstractmethod
    def table_fields(self) -> dict[str, Any] | None:
        """How rows of a table become tokens, for ``to_json``; None for text."""

    @abstractmethod
    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer, where there is one, as transformers reads it."""

    @abstractmethod
    def with_tokenizer(self, folder: str) -> Self:
        """The task with the tokenizer that goes with the model in a folder; a table's needs none.

        Raises:
            ModelError: the folder has no tokenizer, or its tokenizer has no token to pad with.
        """


def _logits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Batch]:
    """A model's output in float32, and the batch on the model's device."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return output.logits.float(), batch
