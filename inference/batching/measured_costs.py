"""The latency table of one session, measured on the spot: exact for it, and made in the time of its runs."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from fedglm.inference.batching.costs import CostTable
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.session import Session


def measure_costs(
    session: Session,
    *,
    batches: Sequence[int] = (1, 2, 4, 8, 16),
    lengths: Sequence[int] = (1, 16, 64),
    past: int = 32,
    repeats: int = 7,
    seconds: float = math.inf,
) -> CostTable:
    """Measure a session's runs at all batches and lengths, interleaved, and keep the least time of each.

    The greater batches are left out where all would take longer than there is time for, and only then.

    Args:
        session: The session, which nobody else runs meanwhile.
        batches: Numbers of sequences; 1 among them.
        lengths: Numbers of new tokens. One token is read as a decoding step, the others as the beginning of a text;
            those that the model does not take are left out.
        past: Number of tokens before a decoding step.
        repeats: Number of measurements of each.
        seconds: How long this may take; batch 1 is measured whatever it takes.

    Raises:
        InferenceError: Batch 1 is missing, or no length fits the model.
    """
    if 1 not in batches:
        raise InferenceError("a latency table begins with batch 1: give it among the batches")
    past = min(past, session.max_length - 1)
    runs, began = {}, time.perf_counter()
    for batch in sorted(batches):
        for tokens in (length for length in lengths if length <= session.max_length):
            begun = past if tokens == 1 else 0
            mask = None
            if batch > 1:  # of unequal lengths: their padding costs
                mask = np.ones((batch, begun + tokens), dtype=np.bool_)
                mask[1:, : max(begun, tokens) // 4] = False
            ids, cache = np.zeros((batch, tokens), dtype=np.int64), None
            if begun:
                before = None if mask is None else mask[:, :begun]
                cache = session.run(np.zeros((batch, begun), dtype=np.int64), mask=before)[1]
            runs[batch, tokens] = (ids, cache, mask)
            session.run(ids, cache, mask=mask)
        # Twice this batch would take at most twice as long as all so far, and each repeat runs all twice.
        all_s = 3 * (time.perf_counter() - began)
        if all_s + 2 * repeats * all_s > seconds:
            break
    least = dict.fromkeys(runs, np.inf)
    for _ in range(repeats):
        for key, (ids, cache, mask) in runs.items():
            session.run(ids, cache, mask=mask)  # whose weights another size has driven out of the processor's caches
            start = time.perf_counter()
            session.run(ids, cache, mask=mask)
            least[key] = min(least[key], (time.perf_counter() - start) * 1000)
    return CostTable(least)
