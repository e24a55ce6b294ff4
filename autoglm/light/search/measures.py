"""What a light model is measured by, on unseen text: its loss, and how far it is from the dense model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.light.pruning.vocabulary import CutVocabulary
from fedglm.autoglm.light.search.tokens import count_unknown, map_tokens
from fedglm.autoglm.tasks.evaluation import perplexity
from fedglm.autoglm.tasks.task import Task, compute_logits

_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Loss:
    """A model's loss on a text, and what of the text it cannot spell.

    Attributes:
        loss: Mean cross-entropy in nats per predicted token of the dense model's vocabulary, or per record.
        metric: Perplexity, exp(loss), or accuracy.
        deviation: Standard error of the loss, over sequences.
        count: Number of predicted tokens or records.
        unknown: Number of tokens that a cut vocabulary cannot spell.
    """

    loss: float
    metric: float
    deviation: float
    count: int
    unknown: int


def find_rise(task: Task, own: Loss, control: Loss) -> float:
    """Return how much worse a model is than the control, as a share.

    For a language model it is the relative rise of the loss. For a classifier it is the share of the control's accuracy
    that is lost: a classifier that is sure of itself has a loss near 0, whose relative rise says nothing.
    """
    if task.metric == "accuracy":
        return (control.metric - own.metric) / control.metric if control.metric else 0.0
    return own.loss / control.loss - 1


def find_rise_error(task: Task, own: Loss) -> float:
    """Return the standard error of a model's part in `find_rise`."""
    if task.metric == "accuracy":
        return math.sqrt(own.metric * (1 - own.metric) / own.count) / own.metric if own.metric else 1.0
    return own.deviation / own.loss if own.loss else math.inf


def measure_loss(model: torch.nn.Module, task: Task, examples: Examples, vocabulary: CutVocabulary | None) -> Loss:
    """Measure the loss of a model on sequences.

    With a cut vocabulary the loss is still that of the same text: all nats of a sequence, spelled in whatever tokens,
    and ln(rows that went) for each unknown token, as if the model chose among those evenly; divided by the number of
    tokens that the whole vocabulary predicts.

    Args:
        model: The model, for the cut vocabulary where there is one.
        task: Task with the whole vocabulary.
        examples: The sequences, in the tokens of the whole vocabulary.
        vocabulary: The cut; None for none.

    Raises:
        DataError: There are no sequences.
    """
    if not len(examples):
        raise DataError("no examples to measure on")
    own_task = task if vocabulary is None else vocabulary.task
    mapped = map_tokens(examples, task, vocabulary)
    losses, correct = own_task.measure(model, mapped)
    counts = task.prediction_counts(examples)
    total = max(float(counts.sum()), 1.0)
    nats = losses * own_task.prediction_counts(mapped)
    unknown = count_unknown(mapped, vocabulary)
    if vocabulary is not None and not task.reads_labels:
        gone = vocabulary.rows - int((vocabulary.kept >= 0).sum())
        nats = nats + unknown * math.log(max(gone, 1))
    loss = float(nats.sum()) / total
    return Loss(
        loss=loss,
        metric=float(correct.mean()) if task.metric == "accuracy" else perplexity(loss),
        deviation=_standard_error(nats / counts.clamp(min=1), counts),
        count=int(counts.sum()),
        unknown=int(unknown.sum()),
    )


@dataclass(frozen=True, kw_only=True)
class Quality(Loss):
    """Figures of a model on unseen sequences.

    Attributes:
        kl_mean: Mean Kullback-Leibler divergence of this model's distribution from the dense one's, in nats; None where
            the two have other tokens.
        kl_99: Its 99th percentile.
        agreement: Share of predictions where both models' likeliest token or class is the same.
    """

    kl_mean: float | None
    kl_99: float | None
    agreement: float | None


def measure_quality(
    model: torch.nn.Module,
    task: Task,
    test: Examples,
    *,
    dense: torch.nn.Module,
    vocabulary: CutVocabulary | None = None,
) -> Quality:
    """Measure a model's loss as `measure_loss` does, and how far its distributions are from the dense model's.

    Args:
        model: The model, for the cut vocabulary where there is one.
        task: Task with the whole vocabulary.
        test: The sequences, in the tokens of the whole vocabulary.
        dense: The dense model, with the whole vocabulary.
        vocabulary: The cut; None for none.

    Raises:
        DataError: There are no sequences.
    """
    loss = asdict(measure_loss(model, task, test, vocabulary))
    if vocabulary is not None:
        return Quality(**loss, kl_mean=None, kl_99=None, agreement=None)
    divergences, agreements = [], []
    for ours, theirs in _paired_logits(model, dense, task, test):
        log_ours, log_theirs = functional.log_softmax(ours.double(), -1), functional.log_softmax(theirs.double(), -1)
        divergences.append((log_theirs.exp() * (log_theirs - log_ours)).sum(-1))
        agreements.append(ours.argmax(-1) == theirs.argmax(-1))
    divergence, agrees = torch.cat(divergences), torch.cat(agreements).double()
    rank = max(1, math.ceil(0.99 * len(divergence)))
    return Quality(
        **loss,
        kl_mean=float(divergence.mean()),
        kl_99=float(divergence.kthvalue(rank).values),
        agreement=float(agrees.mean()),
    )


def _paired_logits(
    model: torch.nn.Module, dense: torch.nn.Module, task: Task, test: Examples
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield both models' logits of the same predictions, (predictions, outputs), a batch at a time."""
    for first in range(0, len(test), _BATCH):
        chosen = test.batch(range(first, min(first + _BATCH, len(test))))
        with torch.no_grad():
            ours, batch = compute_logits(model.eval(), chosen)
            theirs, _ = compute_logits(dense.eval(), chosen)
        if task.reads_labels:
            yield ours, theirs
        else:
            predicted = batch["attention_mask"][:, 1:].bool()
            yield ours[:, :-1][predicted], theirs[:, :-1][predicted]


def _standard_error(losses: torch.Tensor, counts: torch.Tensor) -> float:
    """Return the standard error of a weighted mean over sequences (Cochran, "Sampling Techniques", equation 6.13)."""
    if len(losses) < 2:
        return math.inf
    mean = (losses * counts).sum() / counts.sum().clamp(min=1)
    residuals = (losses - mean) * counts
    variance = residuals.square().sum() * len(losses) / (len(losses) - 1)
    return float(variance.sqrt() / counts.sum().clamp(min=1))
