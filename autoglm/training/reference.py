"""Reference records: labelled records that the server may see, on which it measures the effect of updates on the model.

They are at no site. Each round uses other ones, drawn by the round's number, so that the choice among many models is
not fitted to a few records.
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
"""Number of sequences that a round uses: the cost is proportional to it."""


def load_reference_examples(reference: str, settings: DataSettings, task: Task) -> Examples | None:
    """Load the reference records of a run as token sequences; None where there are none.

    Args:
        reference: ``auto`` takes those that a built-in sets aside, ``off`` none; else the path of a JSONL or CSV file
            with the fields that ``settings`` name.
        settings: Data settings of the run.
        task: Task of the run.

    Raises:
        DataError: The file cannot be read, holds a class that the task does not have, or no usable record.
    """
    records = _read_records(reference, settings, task)
    if records is None:
        return None
    examples, _ = task.examples(records)
    if not len(examples):
        raise DataError(f"{reference}: no record is long enough to measure a model on")
    return examples


def _read_records(reference: str, settings: DataSettings, task: Task) -> Records | None:
    if reference == OFF:
        return None
    if reference != AUTO and not is_path(reference):
        raise DataError(f"federation.reference is {AUTO}, {OFF} or a file, not {reference!r}")
    bundle = BUNDLES[settings.source](settings.bins) if settings.source in BUNDLES else None
    if reference == AUTO:
        return bundle.public if bundle is not None else None
    if bundle is not None:
        raise DataError(f"the built-in {settings.source!r} has its own reference records: choose {AUTO} or {OFF}")
    return read_server_file(reference, settings, task)


def read_server_file(path: str, settings: DataSettings, task: Task) -> Records:
    """Read a file of labelled records that the server itself has.

    Args:
        path: JSONL or CSV file with the fields that ``settings`` name.
        settings: Data settings of the run.
        task: Task of the run.

    Raises:
        DataError: The file cannot be read, or holds a class that the task does not have.
    """
    changes = {"source": path, "site_field": None, "unit_field": None, "class_names": task.classes}
    _, records, _ = read_source(settings.model_copy(update=changes))
    return records


class ReferenceLoss:
    """Mean loss of model vectors on reference records, several vectors at a time.

    Args:
        model: Model to compute with; it is copied.
        task: Task of the model.
        examples: The reference records.
        seed: Seed of the records of each round.
    """

    def __init__(self, model: torch.nn.Module, task: Task, examples: Examples, *, seed: int) -> None:
        self._task, self._examples, self._seed = task, examples, seed
        self._models: SimpleQueue[torch.nn.Module] = SimpleQueue()
        self._workers = min(2, os.cpu_count() or 1)
        for _ in range(self._workers):
            self._models.put(copy.deepcopy(model))

    def __call__(self, vectors: Iterable[npt.NDArray[np.float32]], number: int) -> list[float]:
        """Return the loss of each vector, in nats per record or token; infinity for one that is not finite.

        Vectors are consumed as they are measured, so that few are in memory at a time.

        Args:
            vectors: Model vectors, each of shape (n,), float32.
            number: Number of the round, which determines the records.
        """
        examples = self._draw(number)
        losses: list[float] = []
        pending: deque[Future[float]] = deque()
        # A thread starts with as many torch threads as the machine has cores, and sums in other orders give other bits.
        with ThreadPoolExecutor(self._workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for vector in vectors:
                pending.append(pool.submit(self._evaluate_loss, vector, examples))
                if len(pending) > self._workers:
                    losses.append(pending.popleft().result())
            return losses + [waiting.result() for waiting in pending]

    def _draw(self, number: int) -> Examples:
        count = len(self._examples)
        if count <= MAX_SEQUENCES:
            return self._examples
        chosen = np.random.default_rng([self._seed, number]).permutation(count)[:MAX_SEQUENCES]
        return self._examples.select(np.sort(chosen))

    def _evaluate_loss(self, vector: npt.NDArray[np.float32], examples: Examples) -> float:
        if not np.isfinite(vector).all():
            return float("inf")
        with self._borrow_model() as model:
            load_vector(model, vector)
            loss = self._task.evaluate(model, examples).loss
        return loss if np.isfinite(loss) else float("inf")

    @contextmanager
    def _borrow_model(self) -> Iterator[torch.nn.Module]:
        model = self._models.get()
        try:
            yield model
        finally:
            self._models.put(model)
