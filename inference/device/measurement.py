"""Measuring operations on ONNX Runtime: least times, of graphs that repeat one operation."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import onnxruntime

from fedglm.inference.device.latency_table import LatencyEntry, LatencyTable
from fedglm.inference.device.operations import Feeds, Format, Operation, make_operation

Progress = Callable[[int, int], None]
"""Called with the number of graphs measured so far, and of all."""

_FORMATS: Final[tuple[Format, ...]] = ("fp32", "int8", "int4")
_INPUTS, _OUTPUTS = (64, 256, 1024), (64, 256, 1024, 4096)
_ROWS: Final = (1, 2, 4, 8, 16, 64, 256)
_WEIGHT_BYTES: Final = 16 * 2**20  # of all copies of a linear, so that caches hold no more of them than of a model
_MAX_COPIES: Final = 8
_ATTENTIONS: Final = ((4, 2, 16), (4, 2, 32), (10, 2, 32), (16, 4, 64))
_ATTENDED: Final = ((1, 1, 0), (1, 1, 64), (1, 1, 512), (4, 1, 64), (8, 1, 256), (1, 16, 0), (1, 64, 0), (1, 256, 0))
_ELEMENTWISE: Final[dict[Operation, tuple[tuple[int, ...], ...]]] = {
    "norm": ((64,), (256,), (1024,)),
    "add": ((64,), (256,), (1024,)),
    "rotary": ((2, 32), (8, 32), (16, 64)),
    "gate": ((128,), (512,), (2048,)),
}
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
    entries: list[LatencyEntry] = []
    run = _measure(_Graph("run", (), "fp32", 1, ((1, 1, 0),)), threads, 0.0)[0]
    entries.append(run)
    for done, graph in enumerate(graphs):
        entries += _measure(graph, threads, run.microseconds)
        if progress is not None:
            progress(done + 1, len(graphs))
    return LatencyTable(threads=threads, entries=tuple(entries))


def _plan() -> Iterator[_Graph]:
    for operation, shapes in _ELEMENTWISE.items():
        for shape in shapes:
            yield _Graph(operation, shape, "fp32", _MAX_COPIES, ((1, 1, 0), (8, 1, 0), (1, 64, 0), (1, 256, 0)))
    for shape in _ATTENTIONS:
        yield _Graph("attention", shape, "fp32", 4, _ATTENDED)
    for form in _FORMATS:
        for inputs in _INPUTS:
            for outputs in _OUTPUTS:
                copies = min(_MAX_COPIES, max(2, _WEIGHT_BYTES // (4 * inputs * outputs)))
                yield _Graph("linear", (inputs, outputs), form, copies, tuple((rows, 1, 0) for rows in _ROWS))


def _measure(graph: _Graph, threads: int, run_us: float) -> list[LatencyEntry]:
    """Measure a graph with each of its inputs; the cost of a run itself is taken off."""
    made = make_operation(graph.operation, graph.shape, graph.format, graph.copies)
    session = open_session(made.model, threads)
    return [
        LatencyEntry(
            operation=graph.operation,
            shape=graph.shape,
            format=graph.format,
            batch=batch,
            tokens=tokens,
            past=past,
            microseconds=max(0.0, time_run(session, made.feed(batch, tokens, past)) - run_us) / made.repeats,
        )
        for batch, tokens, past in graph.fed
    ]


def open_session(model: bytes, threads: int) -> Any:
    """Open a model on ONNX Runtime, with the options of a model in use."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def time_run(session: Any, feeds: Feeds) -> float:
    """Return the least time of a run in microseconds: others on the machine only ever add."""
    session.run(None, feeds)
    least, spent, runs = float("inf"), 0.0, 0
    while runs < _MIN_RUNS or (spent < _SECONDS and runs < _MAX_RUNS):
        start = time.perf_counter()
        session.run(None, feeds)
        took = time.perf_counter() - start
        least, spent, runs = min(least, took), spent + took, runs + 1
    return 1e6 * least
