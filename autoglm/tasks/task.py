"""Tasks: the conversion of records to sequences, the loss, and the evaluation of a model."""

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
from fedglm.autoglm.tasks.evaluation import Evaluation
from fedglm.inference.inputs.task import Kind

Batch = dict[str, torch.Tensor]
"""Input of a model, as ``Examples.batch`` returns it."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Task(ABC):
    """A task, and what a model needs to know of it.

    Attributes:
        kind: Name of the task in settings and on disk.
        metric: Meaning of ``Evaluation.metric``.
        reads_labels: Whether the task predicts the records' labels.
        length: Maximum number of tokens of a sequence.
        vocab_size: Exclusive upper bound of the token ids.
        pad_id: Token that pads shorter sequences.
        bos_id: Token that begins a document.
        eos_id: Token that ends a sequence.
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
        """Return the records' token sequences, and the row of each."""

    @abstractmethod
    def label_ids(self, records: Records) -> Indices:
        """Return the number of each record's label, (N,), int64."""

    def examples(self, records: Records) -> tuple[Examples, Indices]:
        """Convert records to token sequences with numbered units; return them and the row of each, possibly none."""
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
        """Class names in the order of their numbers; empty for language modelling."""

    @abstractmethod
    def outputs(self, vocabulary: int) -> int:
        """Return the width of the output of a model with `vocabulary` embedding rows."""

    def initial_embeddings(self, _width: int) -> torch.Tensor | None:
        """Return a new model's initial first embedding rows, (rows, width), float32; None keeps the default ones."""
        return None

    # --- losses and measures

    @property
    def loss_bound(self) -> float:
        """Public bound to which reported losses are clipped, in nats: the loss of a model with uniform outputs."""
        return math.log(max(8, self.outputs(self.vocab_size)))

    @abstractmethod
    def losses(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy of each sequence in nats, (B,), from a model's output in float32."""

    @abstractmethod
    def is_correct(self, logits: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return whether each sequence is classified correctly, (B,), bool; a language model classifies none."""

    @abstractmethod
    def prediction_counts(self, examples: Examples) -> torch.Tensor:
        """Return how many tokens or classes are predicted in each sequence, (N,), float64."""

    @abstractmethod
    def evaluation(self, loss: float, accuracy: float, count: int) -> Evaluation:
        """Make an evaluation from means; `accuracy` is used by classifiers alone."""

    def sequence_losses(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the cross-entropy of each sequence in nats, (B,), float32, with gradients.

        A language model's is the mean over the sequence's own predicted tokens, never over the batch's: that would make
        one record's gradient depend on its neighbours' lengths, and per-record clipping would bound nothing.

        Args:
            model: Model that ``build_model`` made for this task.
            batch: Batch from ``Examples.batch``, on any device.
        """
        return self.losses(*compute_logits(model, batch))

    def evaluate(self, model: torch.nn.Module, examples: Examples, *, batch_size: int = 64) -> Evaluation:
        """Return loss and metric of a model in float32, without gradients or dropout; the model's mode is restored.

        Sequences are batched by length, in an order that depends on their lengths alone, and sums are in float64.

        Raises:
            DataError: There are no examples.
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
        """Return the loss of each sequence, (N,), and whether it was classified correctly, (N,); both float64.

        Computed in float32, without gradients or dropout; the model's mode is restored.
        """
        order = torch.argsort(examples.lengths, stable=True)
        device, training = next(model.parameters()).device.type, model.training
        model.eval()
        losses, correct = torch.zeros(2, len(order), dtype=torch.float64)
        try:
            for first in range(0, len(order), batch_size):
                chosen = order[first : first + batch_size]
                with torch.no_grad(), torch.autocast(device, enabled=False):
                    logits, batch = compute_logits(model, examples.batch(chosen))
                    losses[chosen] = self.losses(logits, batch).double().cpu()
                    correct[chosen] = self.is_correct(logits, batch).double().cpu()
        finally:
            model.train(training)
        return losses, correct

    def pool(self, evaluations: Sequence[Evaluation]) -> Evaluation:
        """Pool several sites' evaluations, as if their examples had been evaluated together.

        Raises:
            DataError: There are no evaluations, or none has examples.
        """
        count = sum(part.count for part in evaluations)
        if not count:
            raise DataError("no evaluations to pool")
        loss = sum(part.loss * part.count for part in evaluations) / count
        accuracy = sum(part.metric * part.count for part in evaluations) / count
        return self.evaluation(loss, accuracy, count)

    # --- on disk

    def to_json(self) -> str:
        """Return the content of ``task.json``, everything but the tokenizer; ``read_task`` reads it."""
        plain = {name: getattr(self, name) for name in ("kind", "length", "vocab_size", "pad_id", "bos_id", "eos_id")}
        return json.dumps(plain | {"labels": self.classes, "table": self.table_fields()}, indent=1)

    @classmethod
    @abstractmethod
    def from_fields(cls, labels: list[str], table: dict[str, Any] | None, **fields: Any) -> Self:
        """Make the task from the fields that ``to_json`` wrote, without its kind and its tokenizer.

        Args:
            labels: Class names.
            table: Fields of the table, as ``table_fields`` returns them.
            fields: Numbers that every task has.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: The fields are not those of such a task.
        """

    @abstractmethod
    def table_fields(self) -> dict[str, Any] | None:
        """Return the fields of the table's encoder for ``to_json``; None for text."""

    @abstractmethod
    def save_tokenizer(self, folder: Path) -> None:
        """Save the tokenizer, where there is one, for transformers to load."""

    @abstractmethod
    def with_tokenizer(self, folder: str) -> Self:
        """Return the task with the tokenizer of the model in a folder; a table's task needs none.

        Raises:
            ModelError: The folder has no tokenizer, or its tokenizer has no padding token.
        """


def compute_logits(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Batch]:
    """Return a model's output in float32, and the batch on the model's device."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return output.logits.float(), batch
