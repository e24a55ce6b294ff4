"""The uses of a model by several threads at once: what they ask meets in a batcher."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Final

import numpy as np
import numpy.typing as npt

from fedglm.inference.batching.batcher import Batcher
from fedglm.inference.batching.costs import BatchCosts
from fedglm.inference.batching.measured_costs import measure_costs
from fedglm.inference.batching.requests import Answer
from fedglm.inference.batching.settings import BatchingSettings
from fedglm.inference.batching.shared_decoding import decode_shared
from fedglm.inference.errors import QueueFullError
from fedglm.inference.generation.decoding import MAX_BATCH, Event
from fedglm.inference.generation.generator import TextGenerator
from fedglm.inference.generation.sampling import Sampling
from fedglm.inference.inputs.model_inputs import ModelInputs
from fedglm.inference.inputs.tokenizer import Ids
from fedglm.inference.prediction import RowClassifier, find_last
from fedglm.inference.runtime.session import Session

_LENGTHS: Final = (16, 64)
"""Tokens of texts at which latencies are measured; beyond, arithmetic rules, and time grows with the tokens."""
_REPEATS: Final = 3


def share_session(
    session: Session,
    inputs: ModelInputs,
    settings: BatchingSettings | None,
    *,
    costs: BatchCosts | None,
    cache_bytes: int,
) -> tuple[Batcher, TextGenerator | RowClassifier]:
    """Put a batcher before a session, and return it and the use that several threads may make of it.

    Args:
        session: The model; nobody else runs it from now on.
        inputs: Its inputs.
        settings: How it batches; None for the default.
        costs: Its latencies; None has them measured.
        cache_bytes: Bound of what is kept, in bytes.

    Raises:
        InferenceError: A limit is not positive.
    """
    settings, length = settings or BatchingSettings(), inputs.task.length
    if costs is None:
        lengths = {1, *_LENGTHS} if inputs.task.is_generative else {min(each, length) for each in _LENGTHS}
        costs = measure_costs(session, lengths=sorted(lengths), repeats=_REPEATS, seconds=settings.measure_s)
    batcher = Batcher(
        session,
        costs,
        deadline_ms=settings.deadline_ms,
        max_batch=settings.max_batch,
        max_waiting=settings.max_waiting,
        max_runs=settings.max_runs or 1,
    )
    share = SharedTextGenerator if inputs.task.is_generative else SharedRowClassifier
    return batcher, share(batcher, inputs, cache_bytes=cache_bytes)


class SharedTextGenerator(TextGenerator):
    """Continues texts of several threads; the arguments are those of `TextGenerator`, with a batcher as the session."""

    def __init__(self, batcher: Batcher, inputs: ModelInputs, *, cache_bytes: int) -> None:
        super().__init__(batcher, inputs, cache_bytes=cache_bytes)
        self._batcher = batcher

    def _decode(
        self,
        prompts: Sequence[Ids],
        max_tokens: int,
        sampling: Sampling,
        generators: Sequence[np.random.Generator | None],
        *,
        at_once: bool,
    ) -> Iterator[Event]:
        if at_once:  # step by step by this thread: to wake it for each token takes longer than to let it run them
            return super()._decode(prompts, max_tokens, sampling, generators, at_once=at_once)
        return decode_shared(
            self._batcher,
            prompts,
            sampling=sampling,
            generators=generators,
            max_tokens=max_tokens,
            end_ids=self._inputs.end_ids,
            vocab_size=self._tokenizer.vocab_size,
            prefixes=self._prefixes,
        )


class SharedRowClassifier(RowClassifier):
    """Classifies rows of several threads; the arguments are those of `RowClassifier`, with a batcher as the session."""

    def __init__(self, batcher: Batcher, inputs: ModelInputs, *, cache_bytes: int) -> None:
        super().__init__(batcher, inputs, cache_bytes=cache_bytes)
        self._batcher = batcher

    def _read(self, rows: Sequence[Ids]) -> npt.NDArray[np.float32]:
        return read_rows_shared(self._batcher, rows, pad_id=self._pad_id)


def read_rows_shared(batcher: Batcher, rows: Sequence[Ids], *, pad_id: int) -> npt.NDArray[np.float32]:
    """Return the logits of the classes of each row, (N, classes), float32, as `read_rows` does.

    Args:
        batcher: A classifier.
        rows: Ids of each row, (T,), int64.
        pad_id: Padding token.

    Raises:
        InferenceError: A row is longer than the model takes.
        QueueFullError: As many requests wait as may, and none of them is of this call.
        BatcherClosedError: The batcher is closed.
    """
    logits = np.empty((len(rows), batcher.outputs), dtype=np.float32)
    asked = [(ids[None], find_last(ids[None], pad_id)) for ids in rows]
    if len(asked) == 1:  # which the calling thread may run itself
        logits[:] = batcher.run(asked[0][0], logits_at=asked[0][1])[0][:, 0]
        return logits
    under_way: deque[tuple[int, Future[Answer]]] = deque()

    def take() -> None:
        row, future = under_way.popleft()
        logits[row] = future.result()[0][0, 0]

    def submit(ids: Ids, at: Ids) -> Future[Answer]:
        while True:
            try:
                return batcher.submit(ids, logits_at=at)
            except QueueFullError:
                if not under_way:
                    raise
                take()

    try:
        for row, (ids, at) in enumerate(asked):
            if len(under_way) == MAX_BATCH:
                take()
            under_way.append((row, submit(ids, at)))
        while under_way:
            take()
    finally:
        for _, future in under_way:
            future.cancel()
    return logits
