"""How small and how fast the codecs are, beside what one would write with `torch.topk`.

    python benchmarks/codecs.py [ELEMENTS]

One thread, a normal update of 10 million elements. Times are the best of five, as ns an element and as a ratio to
`np.copyto` of the same vector in the same run: that ratio is what carries over to another machine. Bits are the whole
blob's for each value sent; the bound is Shannon's for a memoryless support plus the bits of the value.
"""

import math
import os
import sys
from collections.abc import Callable
from time import perf_counter

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from fedglm.compression.codec import codec_options, decode, make_codec
from fedglm.compression.vectors import Vector

REPEATS = 5
CASES: list[tuple[str, float | None]] = [
    ("dense-fp32", None),
    ("dense-fp16", None),
    ("int8", None),
    *((name, density) for density in (0.001, 0.01, 0.05) for name in ("topk-fp16", "topk-sign")),
]


def best_time(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, the first of which only warms up."""
    times = []
    for _ in range(REPEATS + 1):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times[1:])


def shannon(density: float) -> float:
    """Bits a position of a memoryless support."""
    return (-density * math.log2(density) - (1 - density) * math.log2(1 - density)) / density if density < 1 else 0.0


def naive_encode(vector: Vector, density: float) -> bytes:
    """The peer: `torch.topk` of the magnitudes, int32 positions and float16 values."""
    tensor = torch.from_numpy(vector)
    positions = torch.topk(tensor.abs(), round(density * vector.size), sorted=False).indices
    return positions.to(torch.int32).numpy().tobytes() + tensor[positions].to(torch.float16).numpy().tobytes()


def naive_decode(blob: bytes) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions and values again."""
    count = len(blob) // 6
    data = bytearray(blob)
    positions = torch.frombuffer(data, dtype=torch.int32, count=count)
    return positions.long(), torch.frombuffer(data, dtype=torch.float16, offset=4 * count).float()


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    vector = (np.random.default_rng(0).standard_normal(size) * 1e-4).astype(np.float32)
    target = np.empty_like(vector)
    copy = best_time(lambda: np.copyto(target, vector))
    print(f"{size} elements; np.copyto {copy / size * 1e9:.2f} ns an element; times in ns an element (x copyto)\n")
    print("| codec | density | bytes | of FP32 | bits a value | bound | encode | decode |")
    print("|---|---|---|---|---|---|---|---|")

    def row(name: str, density: float | None, blob: bytes, value_bits: float, encode: float, decoding: float) -> None:
        share, sent = ("", size) if density is None else (f"{density:.1%}", round(density * size))
        times = " | ".join(f"{each / size * 1e9:.2f} ({each / copy:.1f} x)" for each in (encode, decoding))
        bound = value_bits + shannon(1.0 if density is None else density)
        reduction = f"{len(blob) / (4 * size):.2%} ({4 * size / len(blob):.0f} x)"
        print(f"| {name} | {share} | {len(blob)} | {reduction} | {8 * len(blob) / sent:.2f} | {bound:.2f} | {times} |")

    for name, density in CASES:
        codec = make_codec(name, **({"density": density} if "density" in codec_options(name) else {}))
        blob = codec.encode(vector)
        bits = {"dense-fp32": 32, "dense-fp16": 16, "int8": 8, "topk-fp16": 16, "topk-sign": 1}[name]
        encode = best_time(lambda codec=codec: codec.encode(vector))  # type: ignore[misc]
        row(name, density, blob, bits, encode, best_time(lambda blob=blob: decode(blob, size=size)))  # type: ignore[misc]
    for density in (0.001, 0.01, 0.05):
        blob = naive_encode(vector, density)
        encode = best_time(lambda density=density: naive_encode(vector, density))  # type: ignore[misc]
        decoding = best_time(lambda blob=blob: naive_decode(blob))  # type: ignore[misc]
        row("torch.topk, int32 + FP16", density, blob, 16, encode, decoding)


if __name__ == "__main__":
    main()
