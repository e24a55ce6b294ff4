"""How a model batches what several threads ask of it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class BatchingSettings:
    """How a model batches what several threads ask of it.

    Attributes:
        deadline_ms: How long a request waits at most for others while the model is idle, in ms.
        max_batch: Maximum number of sequences in a run.
        max_waiting: Maximum number of requests that wait; more are refused.
        max_runs: Maximum number of runs at a time; None takes as many as the process has cores for, and one with torch.
        measure_s: How long the model's latencies are measured at most before it is used, in seconds, where no device
            file tells them. What was not measured is not batched.
    """

    deadline_ms: float = 5.0
    max_batch: int = 32
    max_waiting: int = 256
    max_runs: int | None = None
    measure_s: float = 1.0


def bound_runs(batching: bool | BatchingSettings, runs: int) -> bool | BatchingSettings:
    """Return how a model batches, with `max_runs` where that was left open; False where it does not."""
    if batching is False:
        return False
    settings = BatchingSettings() if batching is True else batching
    return settings if settings.max_runs is not None else replace(settings, max_runs=runs)
