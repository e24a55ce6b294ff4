"""The latency table of one session, measured on the spot: exact for it, and made in the time of its runs."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from fedglm.inference.batching.costs import CostTable
from fedglm.inference.runtime.session import Session


def measure_costs(
    session: Session,
    *,
    batches: Sequence[int] = (1, 2, 4, 8, 16),
    lengths: Sequence[int] = (1, 16, 64),
    past: int = 32,
    repeats: int = 9,
) -> CostTable:
    """Measure a session's runs at all batches and lengths, interleaved, and keep the least time of each.

    Args:
        session: The session, which nobody else runs meanwhile.
        batches: Numbers of sequences; 1 among them.
        lengths: Numbers of new tokens. One token is read as a decoding step, the others as the beginning of a text;
            those that the model does not take are left out.
        past: Number of tokens before a decoding step.
        repeats: Number of measurements of each.

    Raises:
        InferenceError: Batch 1 is missing, or no length fits the model.
    """
    past = min(past, session.max_length - 1)
    runs = {}
    for batch in batches:
        for tokens in (length for length in lengths if length <= session.max_length):
            cache = session.run(np.zeros((batch, past), dtype=np.int64))[1] if tokens == 1 else None
            runs[batch, tokens] = (np.zeros((batch, tokens), dtype=np.int64), cache)
    least = dict.fromkeys(runs, np.inf)
    for _ in range(repeats):
        for key, (ids, cache) in runs.items():
            start = time.perf_counter()
            session.run(ids, cache)
            least[key] = min(least[key], (time.perf_counter() - start) * 1000)
    return CostTable(least)
