"""Evaluation of a model on examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Loss and metric of a model.

    Attributes:
        loss: Mean cross-entropy in nats, over predicted tokens (language model) or records (classifier).
        metric: Perplexity, exp(loss), or accuracy, 0 to 1.
        count: Number of tokens or records that the mean is over.
    """

    loss: float
    metric: float
    count: int


def perplexity(loss: float) -> float:
    """Return exp(loss) of a loss in nats; infinity where that overflows."""
    return math.exp(loss) if loss < np.log(np.finfo(np.float64).max) else (loss if math.isnan(loss) else math.inf)
