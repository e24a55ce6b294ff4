"""A cascade of two classifiers: the small one answers, and the larger one where the small one is unsure.

After "FrugalGPT" (Chen et al., arXiv:2305.05176, section 3, LLM cascade) with the prediction's entropy as the score.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from fedglm.inference.cascade.entropy import normalized_entropy
from fedglm.inference.errors import InferenceError

Row = TypeVar("Row")
Probabilities: TypeAlias = npt.NDArray[np.floating[Any]]
Classifier: TypeAlias = Callable[[Sequence[Row]], Probabilities]
"""Takes n rows and returns probabilities of C classes, (n, C)."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CascadeAnswer:
    """Answer to one row, and how it came about.

    Attributes:
        probabilities: Probabilities, (C,), of the model that had the last word.
        small: Those of the small model.
        large: Those of the larger one; None where it was not asked.
        entropy: Normalized entropy of the small model's.
        threshold: Entropy above which the larger model is asked.
    """

    probabilities: Probabilities
    small: Probabilities
    large: Probabilities | None
    entropy: float
    threshold: float

    @property
    def label(self) -> int:
        """Index of the most probable class."""
        return int(self.probabilities.argmax())

    @property
    def went_up(self) -> bool:
        """Whether the larger model was asked."""
        return self.large is not None


@dataclass(frozen=True, kw_only=True)
class CascadeCounts:
    """Counts since the cascade began.

    Attributes:
        rows: Number of rows answered.
        went_up: Number of those that the larger model was asked about.
        changed: Number of those that it answered by another class.
    """

    rows: int = 0
    went_up: int = 0
    changed: int = 0

    @property
    def share_up(self) -> float | None:
        """Share of the rows that the larger model was asked about; None before the first row."""
        return self.went_up / self.rows if self.rows else None


class Cascade(Generic[Row]):
    """Asks the small model first, and the larger one about all rows whose entropy exceeds the threshold, at once.

    Safe for threads where the models are.

    Args:
        small: The small model.
        large: The larger model, of the same classes.
        threshold: Normalized entropy above which the larger model is asked: `Threshold.entropy`.

    Raises:
        InferenceError: The threshold is not a number.
    """

    def __init__(self, small: Classifier[Row], large: Classifier[Row], *, threshold: float) -> None:
        if np.isnan(threshold):
            raise InferenceError("the threshold of a cascade is a number from -1 (all go up) to 1 (none)")
        self._small, self._large, self._threshold = small, large, threshold
        self._lock = threading.Lock()
        self._counts = CascadeCounts()

    def predict(self, rows: Sequence[Row]) -> list[CascadeAnswer]:
        """Answer each row.

        Raises:
            InferenceError: The models' probabilities do not belong together or to the rows; or as the models raise.
        """
        if not rows:
            return []
        small = self._small(rows)
        if len(small) != len(rows):
            raise InferenceError(f"the small model answered {len(small)} of {len(rows)} rows")
        entropies = normalized_entropy(small)
        up = np.flatnonzero(entropies > self._threshold)
        large = self._large([rows[index] for index in up.tolist()]) if len(up) else small[up]
        if large.shape != (len(up), small.shape[1]):
            raise InferenceError(f"the models of a cascade have the same classes, not {small.shape} and {large.shape}")
        asked = dict(zip(up.tolist(), large, strict=True))
        answers = [
            CascadeAnswer(
                probabilities=asked.get(index, small[index]),
                small=small[index],
                large=asked.get(index),
                entropy=float(entropies[index]),
                threshold=self._threshold,
            )
            for index in range(len(rows))
        ]
        changed = sum(answer.label != int(answer.small.argmax()) for answer in answers)
        with self._lock:
            so_far = self._counts
            self._counts = CascadeCounts(
                rows=so_far.rows + len(rows), went_up=so_far.went_up + len(up), changed=so_far.changed + changed
            )
        return answers

    def counts(self) -> CascadeCounts:
        """Return what has been done so far."""
        return self._counts
