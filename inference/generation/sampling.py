"""How the next token is chosen: the likeliest, or drawn by temperature, top-k and top-p, reproducibly by a seed."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedglm.core.validation_errors import explain
from fedglm.inference.errors import InferenceError


class Sampling(BaseModel):
    """How tokens are chosen.

    Attributes:
        temperature: Divides the logits; 0 takes the likeliest token, always.
        top_k: Draw from the k likeliest tokens alone.
        top_p: Draw from the fewest likeliest tokens whose probabilities, at this temperature and among the `top_k`, sum
            to at least p (nucleus sampling; Holtzman et al., arXiv:1904.09751, section 3.1).
        seed: Seed of the draws; None takes the operating system's randomness.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    top_k: int | None = Field(default=None, ge=1)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check_use(self) -> Self:
        if self.temperature == 0 and (self.top_k is not None or self.top_p is not None):
            raise ValueError("top_k and top_p act where tokens are drawn: give a temperature above 0 too")
        return self

    @classmethod
    def of(cls, **settings: object) -> Self:
        """Make the settings from plain values.

        Raises:
            InferenceError: A value is out of its range.
        """
        try:
            return cls.model_validate(settings)
        except ValidationError as exc:
            raise InferenceError(explain(exc, cls)) from exc

    @property
    def is_repeatable(self) -> bool:
        """Whether the same input gives the same text again."""
        return self.temperature == 0 or self.seed is not None

    def generators(self, count: int) -> list[np.random.Generator] | list[None]:
        """Make a generator for each of some texts: text i has the same draws, whatever texts are beside it.

        Where nothing is drawn there are none: on a small device numpy.random alone is 2 MB.
        """
        if self.temperature == 0:
            return [None] * count
        if self.seed is None:
            return [np.random.default_rng() for _ in range(count)]
        return [np.random.default_rng((self.seed, row)) for row in range(count)]


def choose_token(logits: npt.NDArray[np.float32], sampling: Sampling, generator: np.random.Generator | None) -> int:
    """Choose the next token of a text.

    Args:
        logits: Logits of the V tokens, (V,), float32.
        sampling: How it is chosen; of equal logits the lower token comes first.
        generator: Source of the draw; None where nothing is drawn.

    Raises:
        InferenceError: A logit is not a number.
    """
    if np.isnan(logits).any():
        raise InferenceError("the model's output is not a number: its weights are damaged, or training diverged")
    if generator is None:
        return int(logits.argmax())
    scaled = logits.astype(np.float64)
    scaled = (scaled - scaled.max()) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")[: sampling.top_k]
    weights = np.exp(scaled[order])
    cumulative = np.cumsum(weights)
    if sampling.top_p is not None:
        kept = int(np.searchsorted(cumulative, sampling.top_p * cumulative[-1])) + 1
        order, cumulative = order[:kept], cumulative[:kept]
    drawn = np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right")
    return int(order[min(int(drawn), len(order) - 1)])
