"""How much batching gains: texts and rows of several clients through the batcher, against one after the other.

    python benchmarks/batching.py [--model 0.5m] [--format fp32] [--clients 1 2 4 8] [--repeats 7] [--runs 1] [--seed 0]

A GLM of random weights with the shape of that preset, on ONNX Runtime with one thread. The latency table is measured
first, and printed; the batcher reads it. Then, for each number of clients, three ways in turn, `--repeats` times:

- `decode`: each client has a text of 8 to 16 tokens written on by `--steps` tokens, greedily, by the batcher
- `threads`: the same texts, but each client is a thread that asks for each step by `run`
- `predict`: each client has `--steps` rows of 16 to 32 tokens read, one after the other, by `submit`

`--runs 2` lets two runs go on at a time, as a model that is opened on two cores does.

A ratio compares the least time with that of the session alone, which runs the same requests one by one in one thread,
in turn with the others; `CPU` compares the processor time of the whole process, which other work on the machine
disturbs less, but which does not show waiting; `to 1` compares with a batcher that forms no batches, in processor time:
what batches gain, where threads pass requests to each other anyway. `P99` is over the steps or rows of all repeats;
`limit` is the deadline plus two batches of the greatest size that ran, by the table.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GlmForCausalLM

from fedglm.autoglm.light.graph.formats import choose_formats
from fedglm.autoglm.light.graph.model import build_skeleton
from fedglm.autoglm.models.presets import find_preset, make_glm_config
from fedglm.inference.batching.batcher import Batcher
from fedglm.inference.batching.costs import CostTable
from fedglm.inference.batching.measured_costs import measure_costs
from fedglm.inference.runtime.graph_session import GraphSession
from fedglm.inference.weights.quantized import QuantizedMatrix

DEADLINE_MS = 5.0
Rows = list[npt.NDArray[np.int64]]
Latencies = list[float]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="0.5m", help="0.1m, 0.5m or 10m")
    parser.add_argument("--format", default="fp32", choices=["fp32", "int8", "int4"])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--runs", type=int, default=1, help="at a time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    session = open_session(options.model, options.format, options.seed)
    costs = measure_costs(session, lengths=(1, 16, 32), repeats=15)
    print(f"{options.model}, {options.format}, seed {options.seed}; ms a run by batch")
    for tokens in (1, 16, 32):
        times = [(batch, ms) for (batch, length), ms in sorted(costs.measured.items()) if length == tokens]
        line = "  ".join(f"{batch}: {ms:.2f} ({times[0][1] * batch / ms:.1f}x)" for batch, ms in times)
        print(f"{tokens:>3} tokens  {line}")
    print(
        f"\n{'clients':>7} {'way':<8} {'ratio':>6} {'CPU':>6} {'to 1':>6} {'mean batch':>10} {'P99 ms':>7} {'limit':>7}"
    )
    for clients in options.clients:
        measure(session, costs, clients, options.steps, options.repeats, options.seed, options.runs)


def measure(
    session: GraphSession, costs: CostTable, clients: int, steps: int, repeats: int, seed: int, runs: int
) -> None:
    """Print the lines of a number of clients."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(3, session.vocab_size, (1, size)) for size in rng.integers(8, 17, clients)]
    rows = [rng.integers(3, session.vocab_size, (1, size)) for size in rng.integers(16, 33, clients * steps)]
    ways: dict[str, tuple[Callable[[], object], Callable[[Batcher], Latencies], int]] = {
        "decode": (lambda: [write(session.run, text, steps) for text in texts], lambda b: decode(b, texts, steps), 1),
        "threads": (lambda: [write(session.run, text, steps) for text in texts], lambda b: threads(b, texts, steps), 1),
        "predict": (lambda: [session.run(row) for row in rows], lambda b: predict(b, rows, clients), 32),
    }
    for name, (alone, together, tokens) in ways.items():
        singly, unbatched, batched, latencies, sizes = [], [], [], [], []
        for _ in range(repeats):
            start = now()
            alone()
            singly.append(now() - start)
            with Batcher(session, costs, max_batch=1, max_runs=runs) as batcher:
                start = now()
                together(batcher)
                unbatched.append(now() - start)
            with Batcher(session, costs, deadline_ms=DEADLINE_MS, max_runs=runs) as batcher:
                start = now()
                latencies += together(batcher)
                batched.append(now() - start)
                sizes += [size for size, runs in batcher.counts().batches.items() for _ in range(runs)]
        limit = DEADLINE_MS + 2 * costs.milliseconds(max(sizes), tokens)
        p99 = np.percentile(latencies, 99) * 1000
        ratio, cpu = np.min(singly, axis=0) / np.min(batched, axis=0)
        to_one = (np.min(unbatched, axis=0) / np.min(batched, axis=0))[1]
        line = f"{clients:>7} {name:<8} {ratio:>5.2f}x {cpu:>5.2f}x {to_one:>5.2f}x {np.mean(sizes):>10.1f}"
        print(f"{line} {p99:>7.2f} {limit:>7.2f}", flush=True)


def now() -> npt.NDArray[np.float64]:
    """Return the time and the processor time of this process, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def write(run: Callable[..., tuple[Any, Any]], text: npt.NDArray[np.int64], steps: int) -> Latencies:
    """Write on, greedily; seconds of each step."""
    latencies = []
    logits, cache = run(text)
    for _ in range(steps):
        start = time.perf_counter()
        logits, cache = run(np.array([[int(logits[0, 0].argmax())]]), cache)
        latencies.append(time.perf_counter() - start)
    return latencies


def threads(batcher: Batcher, texts: Rows, steps: int) -> Latencies:
    """Write all texts on, each in a thread of its own."""
    with ThreadPoolExecutor(len(texts)) as pool:
        found = pool.map(lambda text: write(batcher.run, text, steps), texts)
        return [latency for latencies in found for latency in latencies]


def decode(batcher: Batcher, texts: Rows, steps: int) -> Latencies:
    """Write all texts on in the batcher's own thread."""

    def chooser(times: list[float]) -> Callable[[npt.NDArray[np.float32]], int | None]:
        def choose(logits: npt.NDArray[np.float32]) -> int | None:
            times.append(time.perf_counter())
            return int(logits.argmax()) if len(times) <= steps else None

        return choose

    times: list[list[float]] = [[] for _ in texts]
    for future in [batcher.decode(text, chooser(own)) for text, own in zip(texts, times, strict=True)]:
        future.result()
    return [latency for own in times for latency in np.diff(own).tolist()]


def predict(batcher: Batcher, rows: Rows, clients: int) -> Latencies:
    """Ask for all rows, as many at a time as there are clients: each answer lets the next one in."""
    latencies: Latencies = []
    coming = iter(rows)
    done: list[Future[Any]] = []

    def ask() -> Future[Any] | None:
        row = next(coming, None)
        if row is None:
            return None
        start = time.perf_counter()
        future = batcher.submit(row)
        future.add_done_callback(lambda _: latencies.append(time.perf_counter() - start))
        return future

    done = [future for future in (ask() for _ in range(clients)) if future is not None]
    while done:
        done.pop(0).result()
        if (future := ask()) is not None:
            done.append(future)
    return latencies


def open_session(model: str, form: str, seed: int) -> GraphSession:
    """Open a GLM of random weights in this format."""
    torch.manual_seed(seed)
    preset = find_preset(f"glm-{model}")
    config = make_glm_config(preset, vocab_size=256, pad_id=0, bos_id=1, eos_id=2, tied=True)
    glm = GlmForCausalLM(config)
    tensors: Mapping[str, Any] = {
        name: value.numpy() if form == "fp32" or value.ndim < 2 else round_to(value.numpy(), 4 if form == "int4" else 8)
        for name, value in glm.state_dict().items()
        if name != "lm_head.weight"
    }
    settings = config.to_dict() | {"architectures": ["GlmForCausalLM"]}
    skeleton = build_skeleton(settings, choose_formats(tensors, settings, form))  # type: ignore[arg-type]
    return GraphSession.open(skeleton, tensors, settings)


def round_to(weight: npt.NDArray[np.float32], bits: int) -> QuantizedMatrix:
    """Round to the nearest code, in blocks of 32: as fast as any codes."""
    high, block = (1 << (bits - 1)) - 1, 32
    padded = np.pad(weight, ((0, 0), (0, -weight.shape[1] % block)))
    greatest = np.abs(padded.reshape(len(weight), -1, block)).max(axis=2)
    scales = (greatest / high).astype(np.float16).astype(np.float32)
    codes = np.rint(weight / np.maximum(np.repeat(scales, block, axis=1)[:, : weight.shape[1]], 1e-12))
    return QuantizedMatrix(
        codes=codes.clip(-high, high).astype(np.int8), scales=scales, block=block, low=-high - 1, high=high
    )


if __name__ == "__main__":
    main()
