"""Classification of encoded rows: batches by length, probabilities, labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedglm.inference.answer_cache import AnswerCache
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.model_inputs import ModelInputs
from fedglm.inference.inputs.tokenizer import Encoded, Ids
from fedglm.inference.runtime.session import Session

_ENTRY_BYTES = 300  # of an answer in memory, besides its key and its numbers
_BATCH_TOKENS = 4096
"""Maximum tokens of a batch, padding included: 64 rows of 64 tokens; it bounds memory whatever the rows are."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A classified row.

    Attributes:
        label: The likeliest class; of equally likely ones, the first.
        probabilities: Probability of each class by name, in the model's order; they sum to 1.
        is_cut: Whether the end of the row's text was not read, because it is longer than the model takes.
    """

    label: str
    probabilities: dict[str, float]
    is_cut: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return `label` and `probabilities`, for JSON."""
        return {"label": self.label, "probabilities": dict(self.probabilities)}


class RowClassifier:
    """Classifies encoded rows; equal rows once.

    Args:
        session: A classifier.
        inputs: Its inputs.
        cache_bytes: Bound of the answers that are kept, in bytes; 0 keeps none.

    Raises:
        InferenceError: The model has not one output a class.
    """

    def __init__(self, session: Session, inputs: ModelInputs, *, cache_bytes: int) -> None:
        self._labels = inputs.task.labels
        if session.outputs != len(self._labels):
            raise InferenceError(f"the model has {session.outputs} outputs for {len(self._labels)} classes")
        self._session, self._pad_id = session, inputs.task.pad_id
        self._kept: AnswerCache[tuple[float, ...]] = AnswerCache(cache_bytes)

    def kept(self) -> Mapping[str, int]:
        """Return how much is kept, and how often it served."""
        return {
            "answers": len(self._kept),
            "answer_bytes": self._kept.nbytes,
            "answers_reused": self._kept.reused,
        }

    def classify(self, rows: Sequence[Encoded]) -> list[Prediction]:
        """Classify rows, in their order.

        Raises:
            InferenceError: A row is longer than the model takes, or its output is not a number.
        """
        keys = [row.ids.tobytes() for row in rows]
        known = {key: kept for key in dict.fromkeys(keys) if (kept := self._kept.get(key)) is not None}
        new = {key: row.ids for key, row in zip(keys, rows, strict=True) if key not in known}
        found = to_probabilities(self._read(list(new.values())))
        for key, probabilities in zip(new, found.tolist(), strict=True):
            known[key] = tuple(probabilities)
            # A float is an object of 24 bytes behind a pointer.
            self._kept.put(key, known[key], len(key) + 32 * len(probabilities) + _ENTRY_BYTES)
        return [
            Prediction(
                label=self._labels[int(np.argmax(known[key]))],
                probabilities=dict(zip(self._labels, known[key], strict=True)),
                is_cut=row.is_cut,
            )
            for key, row in zip(keys, rows, strict=True)
        ]

    def _read(self, rows: Sequence[Ids]) -> npt.NDArray[np.float32]:
        return read_rows(self._session, rows, pad_id=self._pad_id)


def read_rows(session: Session, rows: Sequence[Ids], *, pad_id: int) -> npt.NDArray[np.float32]:
    """Return the logits of the classes of each row, (N, classes), float32.

    Rows are batched by length and padded on the right. A row is read at its last token that is no padding token, as
    transformers reads it in training (``GenericForSequenceClassification``).

    Args:
        session: A classifier.
        rows: Ids of each row, (T,), int64.
        pad_id: Padding token.

    Raises:
        InferenceError: A row is longer than the model takes.
    """
    logits = np.empty((len(rows), session.outputs), dtype=np.float32)
    for chosen in _make_batches([len(ids) for ids in rows]):
        ids = np.full((len(chosen), len(rows[chosen[-1]])), pad_id, dtype=np.int64)
        for i, row in enumerate(chosen):
            ids[i, : len(rows[row])] = rows[row]
        logits[chosen] = session.run(ids, logits_at=find_last(ids, pad_id))[0][:, 0]
    return logits


def find_last(ids: Ids, pad_id: int) -> Ids:
    """Return the position at which each row, (B, S), is read: its last token that is no padding token, (B, 1)."""
    last: Ids = np.where(ids != pad_id, np.arange(ids.shape[1]), 0).max(1, keepdims=True)
    return last


def to_probabilities(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the probabilities of logits, (N, classes), float64; they sum to 1 in each row.

    Raises:
        InferenceError: A logit is not a number.
    """
    if np.isnan(logits).any():
        raise InferenceError("the model's output is not a number: its weights are damaged, or training diverged")
    wide = logits.astype(np.float64)
    weights = np.exp(wide - wide.max(1, keepdims=True))
    probabilities: npt.NDArray[np.float64] = weights / weights.sum(1, keepdims=True)
    return probabilities


def _make_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the numbers of the rows of each batch, shorter rows first."""
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: lengths[row]):
        if batch and (len(batch) + 1) * lengths[row] > _BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch
