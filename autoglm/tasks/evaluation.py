"""How well a model does on examples."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


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


def perplexity(loss: float) -> float:
    """exp(loss) of a loss in nats; infinity where that overflows."""
    return math.exp(loss) if loss < np.log(np.finfo(np.float64).max) else (loss if math.isnan(loss) else math.inf)
