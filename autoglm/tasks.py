"""What a model is trained for: how a batch becomes losses, and how well it does on examples."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.tables import TableEncoder
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.settings import Kind


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well a model does.

    Attributes:
        loss: mean cross-entropy in nats, over predicted tokens (language model) or records (classifier).
        metric: perplexity, exp(loss), or accuracy, 0 to 1.
        count: how many tokens or records the mean is over.
    """

    loss: float
    metric: float
    count: int


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """What is learned, and what a model must know to learn it.

    Attributes:
        kind: language modelling, or classification of texts or of table rows.
        length: tokens of the longest sequence.
        vocab_size: all token ids are below it.
        pad_id: token that fills shorter sequences.
        bos_id: token that begins a document.
        eos_id: token that ends a sequence.
        labels: class names in the order of their numbers; empty for language modelling.
        tokenizer: makes tokens of text; None for tables.
        table: makes tokens of rows; None for text.
    """

    kind: Kind
    length: int
    vocab_size: int
    pad_id: int
    bos_id: int
    eos_id: int
    labels: tuple[str, ...] = ()
    tokenizer: PreTrainedTokenizerBase | None = None
    table: TableEncoder | None = None

    @property
    def metric(self) -> Literal["perplexity", "accuracy"]:
        """What ``Evaluation.metric`` is."""
        return "accuracy" if self.labels else "perplexity"

    @property
    def num_labels(self) -> int:
        """Number of classes; 0 for language modelling."""
        return len(self.labels)

    @property
    def loss_bound(self) -> float:
        """A public bound by which reported losses are cut, in nats: that of a model which finds all outputs alike."""
        return math.log(max(8, self.num_labels or self.vocab_size))

    def sequence_losses(self, model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy of each sequence in nats, (B,) float32, with gradients.

        A language model's is the mean over the sequence's own predicted tokens, never over the batch's: that would tie
        one record's gradient to its neighbours' lengths, and per-record clipping would mean nothing.

        Args:
            model: what ``build_model`` made for this task.
            batch: what ``Examples.batch`` made, on any device.
        """
        return self._losses(*self._logits(model, batch))

    def evaluate(self, model: torch.nn.Module, examples: Examples, *, batch_size: int = 64) -> Evaluation:
        """Loss and metric of a model in float32, without gradients or dropout; the model's mode is put back.

        Sequences of like length go together, in an order that their lengths alone decide, and sums are in float64.

        Raises:
            DataError: there are no examples.
        """
        if not len(examples):
            raise DataError("no examples to evaluate on")
        losses, correct = self.measure(model, examples, batch_size=batch_size)
        weights = torch.ones_like(losses) if self.labels else (examples.lengths - 1).clamp(min=0).double()
        count = int(weights.sum())
        return self.evaluation(float((losses * weights).sum()) / max(count, 1), float(correct.mean()), count)

    def evaluation(self, loss: float, accuracy: float, count: int) -> Evaluation:
        """Means as an evaluation; `accuracy` counts for classifiers alone."""
        return Evaluation(loss=loss, metric=accuracy if self.labels else _perplexity(loss), count=count)

    def measure(
        self, model: torch.nn.Module, examples: Examples, *, batch_size: int = 64
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of each sequence, (N,), and whether it was classified rightly, (N,); both float64.

        In float32, without gradients or dropout; the model's mode is put back. A language model is right about none.
        """
        order = torch.argsort(examples.lengths, stable=True)
        device, training = next(model.parameters()).device.type, model.training
        model.eval()
        found, correct = torch.zeros(2, len(order), dtype=torch.float64)
        try:
            for first in range(0, len(order), batch_size):
                chosen = order[first : first + batch_size]
                with torch.no_grad(), torch.autocast(device, enabled=False):
                    logits, batch = self._logits(model, examples.batch(chosen))
                    found[chosen] = self._losses(logits, batch).double().cpu()
                if self.labels:
                    correct[chosen] = (logits.argmax(-1) == batch["labels"]).double().cpu()
        finally:
            model.train(training)
        return found, correct

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

    def to_json(self) -> str:
        """Everything but the tokenizer, which saves itself."""
        plain = {name: getattr(self, name) for name in ("kind", "length", "vocab_size", "pad_id", "bos_id", "eos_id")}
        table = self.table and {"names": self.table.names, "edges": self.table.edges, "origin": self.table.origin}
        return json.dumps(plain | {"labels": self.labels, "table": table}, indent=1)

    @classmethod
    def from_json(cls, text: str, tokenizer: PreTrainedTokenizerBase | None = None) -> Task:
        """Read what ``to_json`` wrote.

        Raises:
            DataError: it is something else.
        """
        try:
            plain: dict[str, Any] = json.loads(text)
            table, labels = plain.pop("table"), tuple(plain.pop("labels"))
            encoder = table and TableEncoder(
                names=tuple(table["names"]), edges=tuple(map(tuple, table["edges"])), origin=table["origin"]
            )
            return cls(**plain, labels=labels, table=encoder, tokenizer=tokenizer)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise DataError(f"not the description of a task ({exc})") from exc

    def _logits(
        self, model: torch.nn.Module, batch: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        device = next(model.parameters()).device
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return output.logits.float(), batch

    def _losses(self, logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if self.labels:
            return functional.cross_entropy(logits, batch["labels"], reduction="none")
        targets, mask = batch["input_ids"][:, 1:], batch["attention_mask"][:, 1:]
        scores = logits[:, :-1].flatten(0, 1)
        losses = functional.cross_entropy(scores, targets.flatten(), reduction="none").view_as(targets)
        return (losses * mask).sum(1) / mask.sum(1).clamp(min=1)


def _perplexity(loss: float) -> float:
    return math.exp(loss) if loss < np.log(np.finfo(np.float64).max) else (loss if math.isnan(loss) else math.inf)
