"""How a model batches what several threads ask of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchingSettings:
    """How a model batches what several threads ask of it.

    Attributes:
        deadline_ms: How long a request waits at most for others while the model is idle, in ms.
        max_batch: Maximum number of sequences in a run.
        max_waiting: Maximum number of requests that wait; more are refused.
        measure_s: How long the model's latencies are measured at most before it is used, in seconds, where no device
            file tells them. What was not measured is not batched.
    """

    deadline_ms: float = 5.0
    max_batch: int = 32
    max_waiting: int = 256
    measure_s: float = 1.0
