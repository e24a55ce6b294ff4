"""Measuring operations on ONNX Runtime: least times, of graphs that repeat one operation."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime

from fedglm.inference.device.latency_table import LatencyEntry, LatencyTable, ReadRate
from fedglm.inference.device.operations import WEIGHT_BYTES, Feeds, Format, Operation, make_operation
from fedglm.inference.device.tiny_model import TINY, open_tiny_model
from fedglm.inference.runtime.graph_session import GraphSession

Progress = Callable[[int, int], None]
"""Called with the number of graphs measured so far, and of all."""

_FORMATS: Final[tuple[Format, ...]] = ("fp32", "int8", "int4")
_INPUTS, _OUTPUTS = (64, 256, 1024), (64, 256, 1024, 4096)
_ROWS: Final = (1, 2, 4, 8, 16, 64, 256)
_HELD_BYTES: Final = 2**19  # of all copies of a linear, where it is that small
_MAX_COPIES: Final = 8
_ATTENTIONS: Final = ((4, 2, 16), (4, 2, 32), (10, 2, 32), (16, 4, 64))
_ATTENDED: Final = ((1, 1, 0), (1, 1, 64), (1, 1, 512), (4, 1, 64), (8, 1, 256), (1, 16, 0), (1, 64, 0), (1, 256, 0))
_ELEMENTWISE: Final[dict[Operation, tuple[tuple[int, ...], ...]]] = {
    "norm": ((64,), (256,), (1024,)),
    "add": ((64,), (256,), (1024,)),
    "rotary": ((2, 32), (8, 32), (16, 64)),
    "gate": ((128,), (512,), (2048,)),
}
_BLOCKS: Final = tuple(2**19 << step for step in range(10))  # 0.5 to 256 MiB
_SECONDS, _MIN_RUNS, _MAX_RUNS = 0.02, 5, 400


@dataclass(frozen=True)
class _Graph:
    operation: Operation
    shape: tuple[int, ...]
    format: Format
    copies: int
    fed: tuple[tuple[int, int, int], ...]


def measure_latencies(*, threads: int = 1, progress: Progress | None = None) -> LatencyTable:
    """Measure all operations; takes about half a minute.

    Args:
        threads: Number of threads of a run.
        progress: Called as graphs are measured.
    """
    graphs = list(_plan())
    call_us = _time_call(threads)
    entries: list[LatencyEntry] = []
    for done, graph in enumerate(graphs):
        entries += _measure(graph, threads, call_us)
        if progress is not None:
            progress(done + 1, len(graphs))
    table = LatencyTable(threads=threads, reads=measure_reads(), entries=tuple(entries))
    # What is left of a small model's run: the runtime's own code, feeds, and the few nodes that have no entry.
    left = max(0.0, time_model(open_tiny_model(threads), threads) - 1e3 * table.predict(TINY, "fp32", 1, 1).decode_ms)
    run = LatencyEntry(operation="run", shape=(), batch=1, tokens=1, microseconds=left)
    return table.model_copy(update={"entries": (run, *entries)})


def _time_call(threads: int) -> float:
    """Time a run of a graph that does nothing, in microseconds."""
    made = make_operation("run", (), "fp32", 1)
    return time_run(open_session(made.model, threads), made.feed(1, 1, 0), threads=threads)


def _plan() -> Iterator[_Graph]:
    for operation, shapes in _ELEMENTWISE.items():
        for shape in shapes:
            yield _Graph(operation, shape, "fp32", _MAX_COPIES, ((1, 1, 0), (8, 1, 0), (1, 64, 0), (1, 256, 0)))
    for shape in _ATTENTIONS:
        yield _Graph("attention", shape, "fp32", 4, _ATTENDED)
    for form in _FORMATS:
        for inputs in _INPUTS:
            for outputs in _OUTPUTS:
                copies = min(_MAX_COPIES, max(2, _HELD_BYTES // int(WEIGHT_BYTES[form] * inputs * outputs)))
                yield _Graph("linear", (inputs, outputs), form, copies, tuple((rows, 1, 0) for rows in _ROWS))


def _measure(graph: _Graph, threads: int, call_us: float) -> list[LatencyEntry]:
    """Measure a graph with each of its inputs; the cost of a run itself is taken off."""
    made = make_operation(graph.operation, graph.shape, graph.format, graph.copies)
    session = open_session(made.model, threads)
    is_linear = graph.operation == "linear"
    held = made.repeats * WEIGHT_BYTES[graph.format] * math.prod(graph.shape) if is_linear else 0
    entries = []
    for batch, tokens, past in graph.fed:
        took = time_run(session, made.feed(batch, tokens, past), threads=threads) - call_us
        entries.append(
            LatencyEntry(
                operation=graph.operation,
                shape=graph.shape,
                format=graph.format,
                batch=batch,
                tokens=tokens,
                past=past,
                held_bytes=int(held),
                microseconds=max(0.0, took) / made.repeats,
            )
        )
    return entries


def open_session(model: bytes, threads: int) -> Any:
    """Open a model on ONNX Runtime, with the options of a model in use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def time_run(session: Any, feeds: Feeds, *, threads: int = 1) -> float:
    """Return the least time of a run in microseconds.

    With one thread that is the thread's time on its core, which others on the machine do not lengthen by waiting; with
    more the time that passes.
    """
    return _time(lambda: session.run(None, feeds), threads)


def time_model(session: GraphSession, threads: int) -> float:
    """Return the least time in microseconds of one more token after one, of a model in use."""
    ids = np.zeros((1, 1), np.int64)
    _, cache = session.run(ids)
    return _time(lambda: session.run(ids, cache), threads)


def measure_reads() -> tuple[ReadRate, ...]:
    """Measure how fast one core reads blocks that lie in the caches, and one that none of them holds."""
    reads = []
    overhead = _time(functools.partial(np.bitwise_or.reduce, np.ones(1, np.uint64)), 1)
    for size in _BLOCKS:
        block = np.ones(size // 8, np.uint64)
        microseconds = max(1e-3, _time(functools.partial(np.bitwise_or.reduce, block), 1) - overhead)
        reads.append(ReadRate(held_bytes=size, bytes_per_s=1e6 * block.nbytes / microseconds))
    return tuple(reads)


def _time(call: Callable[[], Any], threads: int) -> float:
    clock = time.thread_time if threads == 1 else time.perf_counter
    call()
    least, spent, runs = float("inf"), 0.0, 0
    while runs < _MIN_RUNS or (spent < _SECONDS and runs < _MAX_RUNS):
        start = clock()
        call()
        took = clock() - start
        least, spent, runs = min(least, took), spent + took, runs + 1
    return 1e6 * least
