"""Reference records: labelled records that the server may see, on which it measures what updates do to the model.

They lie at no site. Each round takes other ones, drawn by the round's number, so that what is measured of many models
is not fitted to a few records.
"""

from __future__ import annotations

import copy
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue

import numpy as np
import numpy.typing as npt
import torch

from fedglm.autoglm.data.bundled import BUNDLES
from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.data.records import Records
from fedglm.autoglm.data.sources import is_path, read_source
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.models.parameters import load_vector
from fedglm.autoglm.settings import DataSettings
from fedglm.autoglm.tasks.task import Task

AUTO, OFF = "auto", "off"

MAX_SEQUENCES = 24
"""Sequences that a round is measured on: what it costs grows with them."""


def reference_examples(reference: str, settings: DataSettings, task: Task) -> Examples | None:
    """The reference records of a run as token sequences; None where there are none.

    Args:
        reference: ``auto`` takes those that a built-in sets aside, ``off`` none; else the path of a JSONL or CSV file
            with the fields that ``settings`` name.
        settings: of the run's records.
        task: what is learned.

    Raises:
        DataError: the file cannot be read, holds a class that the task does not have, or no usable record.
    """
    records = _records(reference, settings, task)
    if records is None:
        return None
    examples, _ = task.examples(records)
    if not len(examples):
        raise DataError(f"{reference}: no record is long enough to measure a model on")
    return examples


def _records(reference: str, settings: DataSettings, task: Task) -> Records | None:
    if reference == OFF:
        return None
    if reference != AUTO and not is_path(reference):
        raise DataError(f"federation.reference is {AUTO}, {OFF} or a file, not {reference!r}")
    bundle = BUNDLES[settings.source](settings.bins) if settings.source in BUNDLES else None
    if reference == AUTO:
        return bundle.public if bundle is not None else None
    if bundle is not None:
        raise DataError(f"the built-in {settings.source!r} has its own reference records: choose {AUTO} or {OFF}")
    away = {"site_field": None, "unit_field": None, "class_names": task.classes}
    _, records, _ = read_source(settings.model_copy(update={"source": reference, **away}))
    return records


class ReferenceLoss:
    """Mean loss of model vectors on reference records, several vectors at a time.

    Args:
        model: To compute with; it is copied.
        task: What it is trained for.
        examples: The records.
        seed: Orders which records a round takes.
    """

    def __init__(self, model: torch.nn.Module, task: Task, examples: Examples, *, seed: int) -> None:
        self._task, self._examples, self._seed = task, examples, seed
        self._models: SimpleQueue[torch.nn.Module] = SimpleQueue()
        self._workers = min(2, os.cpu_count() or 1)
        for _ in range(self._workers):
            self._models.put(copy.deepcopy(model))

    def __call__(self, vectors: Iterable[npt.NDArray[np.float32]], number: int) -> list[float]:
        """Loss of each vector, in nats a record or token; infinity for one that is not finite.

        Vectors are taken as they can be measured, so that few are in memory at a time.

        Args:
            vectors: Each of shape (n,), float32.
            number: Of the round, which decides the records.
        """
        examples = self._drawn(number)
        losses: list[float] = []
        under_way: deque[Future[float]] = deque()
        # Threads begin with as many of their own as the machine has cores, and sums in other orders give other bits.
        with ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for vector in vectors:
                under_way.append(pool.submit(self._loss, vector, examples))
                if len(under_way) > self._workers:
                    losses.append(under_way.popleft().result())
            return losses + [waiting.result() for waiting in under_way]

    def _drawn(self, number: int) -> Examples:
        count = len(self._examples)
        if count <= MAX_SEQUENCES:
            return self._examples
        chosen = np.random.default_rng([self._seed, number]).permutation(count)[:MAX_SEQUENCES]
        return self._examples.select(np.sort(chosen))

    def _loss(self, vector: npt.NDArray[np.float32], examples: Examples) -> float:
        if not np.isfinite(vector).all():
            return float("inf")
        with self._borrowed() as model:
            load_vector(model, vector)
            loss = self._task.evaluate(model, examples).loss
        return loss if np.isfinite(loss) else float("inf")

    @contextmanager
    def _borrowed(self) -> Iterator[torch.nn.Module]:
        model = self._models.get()
        try:
            yield model
        finally:
            self._models.put(model)
