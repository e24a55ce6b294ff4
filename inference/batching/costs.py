"""Latency of a run by its batch and its tokens, from which a batcher knows where batches are faster than singles."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from itertools import product
from math import isfinite
from typing import Protocol

from fedglm.inference.errors import InferenceError


class BatchCosts(Protocol):
    """Latency of one model, in one format, on one device."""

    def milliseconds(self, batch: int, tokens: int) -> float:
        """Return the duration of one run, in ms, above 0.

        Args:
            batch: Number of sequences, at least 1.
            tokens: Number of new tokens of each sequence, padding included: 1 for a decoding step.
        """
        ...


class CostTable:
    """Measured latencies, interpolated linearly in both directions.

    Beyond the greatest batch or length the time grows in proportion: a gain that was not measured is not assumed, so
    that no batch greater than those measured is preferred. Below the least length it is that of the least.

    Args:
        measured: Latency in ms of each (batch, tokens); all pairs of the batches and lengths that occur, batch 1 among
            them.

    Raises:
        InferenceError: A pair is missing, or a time is not positive and finite.
    """

    def __init__(self, measured: Mapping[tuple[int, int], float]) -> None:
        self._batches = sorted({batch for batch, _ in measured})
        self._lengths = sorted({tokens for _, tokens in measured})
        missing = [pair for pair in product(self._batches, self._lengths) if pair not in measured]
        if missing:
            raise InferenceError(
                f"a latency table has every batch at every length; (batch, tokens) {missing[0]} is missing"
            )
        if not self._batches or self._batches[0] != 1 or self._lengths[0] < 1:
            raise InferenceError("a latency table begins with batch 1 and at least one token")
        for (batch, tokens), milliseconds in measured.items():
            if not (isfinite(milliseconds) and milliseconds > 0):
                raise InferenceError(f"batch {batch} of {tokens} tokens is said to take {milliseconds} ms")
        self._measured = dict(measured)

    @property
    def measured(self) -> dict[tuple[int, int], float]:
        """Latency in ms of each (batch, tokens) that was measured."""
        return dict(self._measured)

    def milliseconds(self, batch: int, tokens: int) -> float:
        """Return the duration of one run of `batch` sequences of `tokens` new tokens, in ms."""
        row = [self._at_length(known, tokens) for known in self._batches]
        return interpolate(self._batches, row, batch)

    def _at_length(self, batch: int, tokens: int) -> float:
        times = [self._measured[batch, known] for known in self._lengths]
        return interpolate(self._lengths, times, tokens)


def interpolate(points: list[int], values: list[float], at: int) -> float:
    """Interpolate linearly between ascending points; constant before the first, in proportion after the last."""
    if at <= points[0]:
        return values[0]
    if at > points[-1]:
        return values[-1] * at / points[-1]
    right = bisect_left(points, at)
    left = right - 1
    share = (at - points[left]) / (points[right] - points[left])
    return values[left] + share * (values[right] - values[left])
