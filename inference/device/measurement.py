"""Measuring operations on ONNX Runtime: least times, of graphs that repeat one operation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime
import psutil

from fedglm.inference.device.latency_table import LatencyEntry, LatencyTable, ReadRate
from fedglm.inference.device.operations import WEIGHT_BYTES, Feeds, Format, Operation, make_operation
from fedglm.inference.device.tiny_model import TINY_LAYERS, open_tiny_model, tiny_config
from fedglm.inference.runtime.graph_session import GraphSession

Progress = Callable[[int, int], None]
"""Called with the number of graphs measured so far, and of all."""

_FORMATS: Final[tuple[Format, ...]] = ("fp32", "int8", "int4")
_INPUTS, _OUTPUTS = (64, 256, 1024), (64, 256, 1024, 4096)
_ROWS: Final = (1, 2, 4, 8, 16, 64, 256)
_HELD_BYTES: Final = 2**19  # of all copies of a linear, where it is that small
_MAX_COPIES: Final = 8
_ATTENTIONS: Final = ((4, 2, 16), (4, 2, 32), (10, 2, 32), (16, 4, 64))
_ATTENDED: Final = ((1, 1, 0), (1, 1, 64), (1, 1, 512), (4, 1, 64), (8, 1, 128), (1, 16, 0), (1, 64, 0), (1, 256, 0))
_ELEMENTWISE: Final[dict[Operation, tuple[tuple[int, ...], ...]]] = {
    "norm": ((64,), (256,), (1024,)),
    "add": ((64,), (256,), (1024,)),
    "rotary": ((2, 32), (8, 32), (16, 64)),
    "gate": ((128,), (512,), (2048,)),
}
_READ_SHAPE: Final = (512, 512)
_HELD: Final = tuple(2**20 << step for step in range(7))  # 1 to 64 MiB
_READ_ROWS: Final = (1, 2, 8, 64)
_MAX_READ_RATE: Final = 1e13  # bytes a second: above that it is noise, as of a cost that was taken off
_READ_SECONDS: Final = 0.2  # others take caches away for a while
_SECONDS, _MIN_RUNS, _MAX_RUNS = 0.04, 8, 400


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
    table = LatencyTable(threads=threads, reads=measure_reads(threads, call_us), entries=tuple(entries))
    return table.model_copy(update={"entries": (*_measure_left_over(table), *entries)})


def _measure_left_over(table: LatencyTable) -> Iterator[LatencyEntry]:
    """Measure what is left of real models' runs: feeds, the runtime's own code, nodes that have no entry.

    Between different operations also some of their code comes from further away than between equal ones.
    """
    left = []
    for layers in TINY_LAYERS:
        whole = time_model(open_tiny_model(layers, table.threads), table.threads)
        left.append(whole - 1e3 * table.predict(tiny_config(layers), "fp32", 1, 1).decode_ms)
    few, many = TINY_LAYERS
    a_layer = max(0.0, (left[1] - left[0]) / (many - few))
    yield LatencyEntry(operation="layer", shape=(), batch=1, tokens=1, microseconds=a_layer)
    a_run = max(0.0, left[0] - few * a_layer)
    yield LatencyEntry(operation="run", shape=(), batch=1, tokens=1, microseconds=a_run)


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


def _measure(graph: _Graph, threads: int, call_us: float, seconds: float = _SECONDS) -> list[LatencyEntry]:
    """Measure a graph with each of its inputs; the cost of a run itself is taken off."""
    made = make_operation(graph.operation, graph.shape, graph.format, graph.copies)
    session = open_session(made.model, threads)
    is_linear = graph.operation == "linear"
    held = made.repeats * WEIGHT_BYTES[graph.format] * math.prod(graph.shape) if is_linear else 0
    entries = []
    for batch, tokens, past in graph.fed:
        took = time_run(session, made.feed(batch, tokens, past), threads=threads, seconds=seconds) - call_us
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


def time_run(session: Any, feeds: Feeds, *, threads: int = 1, seconds: float = _SECONDS) -> float:
    """Return the least time of a run in microseconds.

    With one thread that is the thread's time on its core, which others on the machine do not lengthen by waiting; with
    more the time that passes.
    """
    return _time(lambda: session.run(None, feeds), threads, seconds)


def time_model(session: GraphSession, threads: int) -> float:
    """Return the least time in microseconds of one more token after one, of a model in use."""
    ids = np.zeros((1, 1), np.int64)
    _, cache = session.run(ids)
    return _time(lambda: session.run(ids, cache), threads, _READ_SECONDS)


def measure_reads(threads: int, call_us: float) -> tuple[ReadRate, ...]:
    """Measure how fast linears of each format read weights that lie in a cache, and more than any of them holds.

    Args:
        threads: Number of threads of a run.
        call_us: Cost of a run itself in microseconds, which is taken off: the few weights that a near cache holds are
            read in as little.
    """
    reads = []
    most = min(_HELD[-1], psutil.virtual_memory().available // 16)
    fed = tuple((rows, 1, 0) for rows in _READ_ROWS)
    for form in _FORMATS:
        each = int(WEIGHT_BYTES[form] * math.prod(_READ_SHAPE))
        for held in (size for size in _HELD if size <= most):
            copies = max(1, held // each)
            for entry in _measure(_Graph("linear", _READ_SHAPE, form, copies, fed), threads, call_us, _READ_SECONDS):
                rate = min(_MAX_READ_RATE, 1e6 * each / max(entry.microseconds, 1e-9))
                reads.append(ReadRate(format=form, rows=entry.batch, held_bytes=copies * each, bytes_per_s=rate))
    return tuple(reads)


def _time(call: Callable[[], Any], threads: int, seconds: float) -> float:
    clock = time.thread_time if threads == 1 else time.perf_counter
    call()
    least, spent, runs = float("inf"), 0.0, 0
    while runs < _MIN_RUNS or (spent < seconds and runs < _MAX_RUNS):
        start = clock()
        call()
        took = clock() - start
        least, spent, runs = min(least, took), spent + took, runs + 1
    return 1e6 * least
