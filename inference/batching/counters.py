"""What a batcher has done: counts to read, to show and to export as metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatcherCounts:
    """Counts since the batcher began, at one moment; each accepted request is waiting, running or in one of the ends.

    Attributes:
        waiting: Number of requests that wait: the depth of the queue.
        running: Number of requests in the batch that runs.
        accepted: Number of requests taken into the queue.
        answered: Number of those answered.
        failed: Number of those whose own run failed.
        cancelled: Number of those withdrawn before they ran, by their sender or by closing.
        refused: Number of requests that found the queue full, and were never accepted.
        batches: Number of runs by their size; those alone count as 1.
        repeated: Number of batches that failed together, whose requests then ran one by one.
    """

    waiting: int
    running: int
    accepted: int
    answered: int
    failed: int
    cancelled: int
    refused: int
    batches: Mapping[int, int]
    repeated: int
