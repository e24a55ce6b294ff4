"""A cascade of two models in use: a small one classifies, and a larger one those rows of which it is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from fedglm.inference.cascade.cascade import Cascade, CascadeCounts
from fedglm.inference.cascade.threshold import Threshold, threshold_for_agreement, threshold_for_budget
from fedglm.inference.errors import InferenceError
from fedglm.inference.inputs.model_inputs import DEFAULT_TEXT_FIELD, Row
from fedglm.inference.inputs.tokenizer import Encoded
from fedglm.inference.model import LiteModel
from fedglm.inference.prediction import Prediction

DEFAULT_AGREEMENT = 0.95


class _Pair(NamedTuple):
    """A row as each of the models reads it."""

    small: Encoded
    large: Encoded


@dataclass(frozen=True, kw_only=True)
class CascadePrediction(Prediction):
    """A classified row, and by whom.

    Attributes:
        answered_by: The model that had the last word.
        entropy: Normalized entropy of the small model's answer, 0 where it is certain, 1 where it has no idea.
    """

    answered_by: Literal["small", "large"]
    entropy: float

    def to_dict(self) -> dict[str, Any]:
        """Return all but `is_cut`, for JSON."""
        return super().to_dict() | {"answered_by": self.answered_by, "entropy": self.entropy}


@dataclass(frozen=True, kw_only=True)
class FittedThreshold:
    """A threshold that was set on rows, and what it gave on them.

    Attributes:
        threshold: The threshold, the share that goes up by it, and the agreement with the larger model.
        accuracy: Share of right answers of the "small", the "large" and the "cascade"; None without labels.
    """

    threshold: Threshold
    accuracy: dict[str, float] | None


class CascadeModel:
    """Asks a small classifier first, and a larger one about the rows of which the small one is unsure.

        model = CascadeModel.fit(small, large, rows, agreement=0.98)
        [(each.label, each.answered_by) for each in model.predict(others)]
        model.info()["share_up"]

    It is for as many threads as its models are, and closes none of them.

    Args:
        small: The small model.
        large: The larger model, of the same classes; it reads rows of the same form.
        threshold: Normalized entropy of the small model's answer above which the larger one is asked: at 1 never, below
            0 always. The same threshold means something else for each pair of models: `fit` sets one.

    Attributes:
        threshold: As given, or as fitted.
        fitted: What the threshold gave on the rows that it was set on; None for one that was given.

    Raises:
        InferenceError: The models do not classify, or not into the same classes, or not rows of the same form.
    """

    def __init__(
        self, small: LiteModel, large: LiteModel, *, threshold: float, fitted: FittedThreshold | None = None
    ) -> None:
        check_pair(small, large)
        self.threshold, self.fitted = threshold, fitted
        self._small, self._large = small, large
        self._cascade: Cascade[_Pair] = Cascade(
            lambda pairs: _classify(small, [pair.small for pair in pairs]),
            lambda pairs: _classify(large, [pair.large for pair in pairs]),
            threshold=threshold,
        )

    @classmethod
    def fit(
        cls,
        small: LiteModel,
        large: LiteModel,
        rows: Sequence[Row],
        *,
        agreement: float | None = None,
        share_up: float | None = None,
        labels: Sequence[str] | None = None,
        text_field: str = DEFAULT_TEXT_FIELD,
    ) -> Self:
        """Set the threshold on rows, and return the cascade.

        Either the fewest go up while the cascade answers as the larger model as often as `agreement` asks, on other
        rows of the same kind too, with 95 % confidence (some hundred rows are needed, else all go up); or as many as
        `share_up` allows.

        Args:
            small: The small model.
            large: The larger model.
            rows: Rows as `predict` takes them, which neither model was trained on.
            agreement: Share of the answers to be the larger model's, within 0 to 1; 0.95 where neither is given.
            share_up: Share of the rows that may go up, within 0 to 1.
            labels: The true class of each row, to tell how often each is right; the threshold does not depend on it.
            text_field: Name of the text in a row that is a mapping.

        Raises:
            InferenceError: The models or the labels do not fit, a share is out of range, both are given, or there are
                no rows; or as by `LiteModel.predict`.
        """
        check_pair(small, large)
        if agreement is not None and share_up is not None:
            raise InferenceError("a cascade is fitted to an agreement or to a share that may go up: give one of them")
        names = small.inputs.task.labels
        if labels is not None and (len(labels) != len(rows) or not set(labels) <= set(names)):
            raise InferenceError(f"labels are the class of each of {len(rows)} rows, of {', '.join(names)}")
        pairs = _encode(small, large, rows, text_field)
        said = _classify(small, [pair.small for pair in pairs]), _classify(large, [pair.large for pair in pairs])
        if share_up is not None:
            threshold = threshold_for_budget(*said, share_up=share_up)
        else:
            threshold = threshold_for_agreement(*said, agreement=DEFAULT_AGREEMENT if agreement is None else agreement)
        accuracy = None
        if labels is not None:
            true = np.array([names.index(label) for label in labels])
            both: Cascade[int] = Cascade(
                lambda at: said[0][list(at)], lambda at: said[1][list(at)], threshold=threshold.entropy
            )
            chosen = {
                "small": said[0].argmax(axis=1),
                "large": said[1].argmax(axis=1),
                "cascade": np.array([answer.label for answer in both.predict(range(len(rows)))]),
            }
            accuracy = {name: float((found == true).mean()) for name, found in chosen.items()}
        fitted = FittedThreshold(threshold=threshold, accuracy=accuracy)
        return cls(small, large, threshold=threshold.entropy, fitted=fitted)

    def predict(self, rows: Sequence[Row], *, text_field: str = DEFAULT_TEXT_FIELD) -> list[CascadePrediction]:
        """Classify rows; each prediction says who answered.

        Args:
            rows: Rows as `LiteModel.predict` takes them.
            text_field: Name of the text in a mapping.

        Raises:
            InferenceError: A row cannot be used; the message has its number, from 1.
        """
        pairs, names = _encode(self._small, self._large, rows, text_field), self._small.inputs.task.labels
        return [
            CascadePrediction(
                label=names[answer.label],
                probabilities=dict(zip(names, answer.probabilities.tolist(), strict=True)),
                is_cut=(pair.large if answer.went_up else pair.small).is_cut,
                answered_by="large" if answer.went_up else "small",
                entropy=answer.entropy,
            )
            for pair, answer in zip(pairs, self._cascade.predict(pairs), strict=True)
        ]

    def counts(self) -> CascadeCounts:
        """Return how many rows were answered, went up, and were answered otherwise there."""
        return self._cascade.counts()

    def info(self) -> dict[str, Any]:
        """Return the threshold, what was counted, the share that went up, and what is known of both models."""
        counts = self.counts()
        return {
            "threshold": self.threshold,
            "fitted": None if self.fitted is None else asdict(self.fitted),
            **asdict(counts),
            "share_up": counts.share_up,
            "small": self._small.info(),
            "large": self._large.info(),
        }


def check_pair(small: LiteModel, large: LiteModel) -> None:
    """Check that two models make a cascade.

    Raises:
        InferenceError: They do not.
    """
    one, other = small.inputs, large.inputs
    for inputs in (one, other):
        if inputs.task.is_generative:
            raise InferenceError("a cascade is of two classifiers, and one of the models is a language model")
    if one.task.labels != other.task.labels:
        both = f"{', '.join(one.task.labels)} and {', '.join(other.task.labels)}"
        raise InferenceError(f"the models of a cascade have the same classes in the same order, not {both}")
    if (one.table.names if one.table else None) != (other.table.names if other.table else None):
        raise InferenceError("the models of a cascade read the same rows: texts, or tables of the same features")


def _encode(small: LiteModel, large: LiteModel, rows: Sequence[Row], text_field: str) -> list[_Pair]:
    return [
        _Pair(one, other)
        for one, other in zip(small.encode(rows, text_field), large.encode(rows, text_field), strict=True)
    ]


def _classify(model: LiteModel, rows: Sequence[Encoded]) -> npt.NDArray[np.float64]:
    return np.array([[*each.probabilities.values()] for each in model.classify(rows)])
