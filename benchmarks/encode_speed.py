"""How near to memory speed a sparse update is coded with error feedback, and folded in at the other end.

    python benchmarks/encode_speed.py [ELEMENTS ...]

One thread, top 1 %, 10 and 100 million elements. Times are the best of several runs, all cases in turn, as ns an
element and as a ratio to `np.copyto` of the same vector in the same process: that ratio is what carries over to another
machine. They are of the thread's own clock, which stops while another program has the core. The parts are those of the
fused encoding.

The update is normal, or heavy-tailed (a normal over a normal: Cauchy), of a vector without a layout. Then with the
tensors of a GLM, so that the context coder of positions has rows and columns to learn: normal, or a normal whose scale
differs by row and by column (log-normally), as in training.
"""

import itertools
import math
import os
import sys
from collections.abc import Callable
from time import thread_time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from fedglm.autoglm.models.build import build_model
from fedglm.autoglm.settings import ModelSettings
from fedglm.autoglm.tasks.task import Task
from fedglm.compression.codec import Codec, decode, make_codec
from fedglm.compression.codecs import selection
from fedglm.compression.feedback import ErrorFeedback
from fedglm.compression.kernels import selection as selection_kernels
from fedglm.compression.kernels.scatter import add_at
from fedglm.compression.layout import Layout
from fedglm.compression.positions import coding, signed
from fedglm.compression.positions.signed import apply_signs
from fedglm.compression.values import bits, magnitudes
from fedglm.compression.vectors import Positions, Vector
from fedglm.compression.wire.envelope import Reader
from fedglm.inference.inputs.byte_tokenizer import BOS_ID, EOS_ID, PAD_ID
from fedglm.protocol.federated_model import make_layout

DENSITY = 0.01
ROUNDS = 3
"""Updates that take turns, so that a residual builds up as in training."""
SPREAD = 0.5
"""Standard deviation of the logarithm of the rows' and of the columns' scales."""


def best_times(cases: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Seconds of each case's fastest run; the first run of all only warms up."""
    best = dict.fromkeys(cases, float("inf"))
    for turn in range(repeats + 1):
        for name, work in cases.items():
            start = thread_time()
            work()
            if turn:
                best[name] = min(best[name], thread_time() - start)
    return best


def glm_layout(size: int) -> Layout:
    """The tensors of a GLM of about `size` elements, over and over until there are so many."""
    task = Task(kind="language-model", length=64, vocab_size=256, pad_id=PAD_ID, bos_id=BOS_ID, eos_id=EOS_ID)
    preset = "glm-10m" if size < 30_000_000 else "glm-76m"
    model = make_layout(build_model(ModelSettings(preset=preset), task, seed=0))
    names, shapes, room = [], [], size
    for index, shape in enumerate(itertools.cycle(model.shapes)):
        if room <= 0:
            break
        names.append(f"tensor {index}")
        shapes.append(shape)
        room -= math.prod(shape)
    return Layout(tuple(names), tuple(shapes))


def scales(layout: Layout) -> Vector:
    """Of each element: log-normal by row times log-normal by column."""
    generator = np.random.default_rng(1)
    parts = []
    for shape in layout.shapes:
        rows = shape[0] if len(shape) > 1 else 1
        sides = (rows, 1), (1, math.prod(shape) // rows)
        row, column = (np.exp(generator.normal(0, SPREAD, side)).astype(np.float32) for side in sides)
        parts.append((row * column).ravel())
    return np.concatenate(parts)


def deltas(kind: str, size: int, layout: Layout | None) -> list[Vector]:
    """Some updates of a learning rate's size."""
    generator = np.random.default_rng(0)
    scale = scales(layout) if layout is not None and kind == "scaled" else None
    drawn = []
    for _ in range(ROUNDS):
        vector = generator.standard_normal(size, dtype=np.float32)
        if kind == "heavy-tailed":
            vector /= generator.standard_normal(size, dtype=np.float32) + np.float32(1e-6)
        if scale is not None:
            vector *= scale
        vector *= np.float32(1e-4)
        drawn.append(vector)
    return drawn


def partitioned(vector: Vector, count: int) -> Positions:
    """The selection that numpy alone gives: the exact threshold by `np.partition`."""
    magnitudes = np.abs(vector)
    threshold = np.partition(magnitudes, vector.size - count)[vector.size - count]
    chosen = magnitudes > threshold
    ties = np.flatnonzero(magnitudes == threshold)
    chosen[ties[: count - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


class Encoding:
    """A node's side, round after round."""

    def __init__(self, codec: Codec, drawn: list[Vector]) -> None:
        self.codec = codec
        self.feedback = ErrorFeedback(drawn[0].size)
        self.deltas = drawn
        self.turn = 0
        for _ in drawn:
            self.step()

    def step(self) -> bytes:
        """Encode the next update and commit what it leaves out."""
        self.turn += 1
        blob = self.feedback.encode(self.codec, self.deltas[self.turn % ROUNDS])
        self.feedback.commit()
        return blob


def measure(kind: str, size: int, layout: Layout | None) -> None:
    """Print the table of one vector; with a layout, without the selections that are there to compare with."""
    drawn = deltas(kind, size, layout)
    delta, count = drawn[0], selection.count_kept(DENSITY, size)
    fast = Encoding(make_codec("topk-sign", density=DENSITY, coder="fast"), drawn)
    smallest = Encoding(make_codec("topk-sign", density=DENSITY, layout=layout), drawn)
    blobs = {"fast": fast.step(), "smallest": smallest.step()}
    out, total = np.empty_like(delta), np.zeros_like(delta)
    tensor = torch.from_numpy(delta)
    one, residual = np.float32(1), fast.feedback.residual.copy()
    threshold, room = selection._estimate_threshold(delta, residual, one, count)
    at, values = np.empty(room, np.int64), np.empty(room, np.float32)
    head = -out.ctypes.data % selection_kernels.ALIGNMENT // out.itemsize

    def one_pass() -> int:
        return selection_kernels.compensate(delta, residual, one, np.int32(threshold), head, out, at, values)

    found = one_pass()
    chosen = selection.select_largest_compensated(delta, residual, one, count, out)
    magnitude = magnitudes.unpack(Reader(memoryview(magnitudes.pack(chosen.values))), count)

    def dense_add() -> None:
        np.add(total, delta, out=total)

    cases: dict[str, Callable[[], object]] = {
        "np.copyto": lambda: np.copyto(out, delta),
        "encode + commit, fast coder": fast.step,
        "encode + commit, smallest coder": smallest.step,
        "  part: sample and threshold": lambda: selection._estimate_threshold(delta, residual, one, count),
        "  part: the one pass": one_pass,
        "  part: boundary of the candidates": lambda: selection_kernels.nth_largest(values[:found], count),
        "  part: magnitude": lambda: magnitudes.pack(chosen.values),
        "  part: signs, fast": lambda: bits.pack(chosen.values < 0),
        "  part: values as the other end will see them": lambda: apply_signs(magnitude, chosen.values < 0),
        "  part: positions, fast": lambda: coding.pack(chosen.positions, size, None, "fast"),
        "  part: positions, smallest": lambda: coding.pack(chosen.positions, size, layout, "smallest"),
        "  part: positions and signs, smallest": lambda: signed.pack(
            chosen.positions, chosen.values < 0, size, layout, "smallest"
        ),
        "  part: subtract what is sent": lambda: add_at(out, chosen.positions, chosen.values),
        "selection without feedback": lambda: selection.select_largest(delta, count),
        "dense += (float32)": dense_add,
        "decode + add_to, fast coder": lambda: decode(blobs["fast"], size=size).add_to(total, 0.25),
        "decode + add_to, smallest coder": lambda: decode(blobs["smallest"], size=size).add_to(total, 0.25),
    }
    slow: dict[str, Callable[[], object]] = {
        "np.partition, without feedback": lambda: partitioned(delta, count),
        "torch abs + topk, without feedback": lambda: torch.topk(tensor.abs(), count, sorted=False),
    }
    times = best_times(cases, 15) | (best_times(slow, 2) if layout is None else {})
    copy = times["np.copyto"]
    tensors = "no layout" if layout is None else f"{len(layout.shapes)} tensors of a GLM"
    lengths = ", ".join(f"{len(blob)} bytes {name}" for name, blob in blobs.items())
    each = 8 * len(blobs["smallest"]) / count
    print(f"\n{size} elements, {kind}, {tensors}, {DENSITY:.0%}; {lengths} ({each:.2f} bits a value)")
    print(
        f"{found / count:.2f} candidates for each one wanted\n\n| case | ns an element | x np.copyto |\n|---|---|---|"
    )
    for name, seconds in times.items():
        print(f"| {name} | {seconds / size * 1e9:.3f} | {seconds / copy:.2f} |")
    ratio = times["decode + add_to, fast coder"] / times["dense += (float32)"]
    print(f"\ndecode + add_to, fast coder, is {ratio:.2f} x one dense +=")


def main() -> None:
    """Measure each size on each kind of update."""
    torch.set_num_threads(1)
    for size in [int(float(word)) for word in sys.argv[1:]] or [10_000_000, 100_000_000]:
        for kind in ("normal", "heavy-tailed"):
            measure(kind, size, None)
        layout = glm_layout(size)
        for kind in ("normal", "scaled"):
            measure(kind, layout.size, layout)


if __name__ == "__main__":
    main()
