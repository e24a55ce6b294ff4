"""Schedules over a stage's steps: a number that changes from one value to another, and the learning rate's factor."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Shape = Literal["linear", "cosine"]
Decay = Literal["cosine", "wsd", "constant"]

WSD_DECAY = 0.2
"""Share of the steps in which the rate of a warm-up-stable-decay schedule falls (Hu et al., arXiv:2404.06395, 4.2)."""


class Ramp(BaseModel):
    """A number that goes from one value to another over a stage.

    Attributes:
        start: Value at the first step.
        end: Value at the last step.
        shape: Whether it moves evenly, or along half a cosine: slowly at both ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    start: float = Field(ge=0, le=1000)
    end: float = Field(ge=0, le=1000)
    shape: Shape = "linear"

    def at(self, fraction: float) -> float:
        """Return the value after a fraction of the stage, 0 to 1."""
        passed = fraction if self.shape == "linear" else (1 - math.cos(math.pi * fraction)) / 2
        return self.start + (self.end - self.start) * passed


def value_at(schedule: float | Ramp, fraction: float) -> float:
    """Return the value of a constant or a ramp after a fraction of the stage, 0 to 1."""
    return schedule.at(fraction) if isinstance(schedule, Ramp) else schedule


def rate_factor(decay: Decay, step: int, steps: int, warmup: int) -> float:
    """Return the learning rate of step `step`, counted from 1, as a fraction of the peak, more than 0 and at most 1.

    It rises linearly over the first `warmup` steps. ``cosine`` then falls along half a cosine (Loshchilov and Hutter,
    arXiv:1608.03983, equation 5); ``wsd`` stays and falls linearly in the last fifth; ``constant`` stays. The last step
    of both still moves.
    """
    if step <= warmup:
        return step / (warmup + 1)
    if decay == "constant":
        return 1.0
    if decay == "cosine":
        return (1 + math.cos(math.pi * (step - warmup - 1) / max(1, steps - warmup))) / 2
    falling = max(1, round(WSD_DECAY * steps))
    return min(1.0, (steps - step + 1) / falling)
