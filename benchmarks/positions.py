"""How short and how fast the codes of positions are.

    python benchmarks/positions.py

First random supports of a million elements, whose bound is Shannon's for a memoryless support; the sizes include all of
the section that holds the positions. Then the supports of what nodes of `fedglm simulate text` had to send, the largest
magnitudes: an update each of nine rounds of a run that `updates.py` makes once, in five minutes. Last the times for ten
million elements at 1 %, by the thread's own clock, which stops while another program has the core; the best of seven,
one thread.
"""

import math
import os
from collections.abc import Callable
from time import thread_time

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
from updates import Sample, real

from fedglm.compression.layout import Layout
from fedglm.compression.positions import coding
from fedglm.compression.vectors import Positions
from fedglm.compression.wire.envelope import Reader

DENSITIES = (0.001, 0.01, 0.05)
REPEATS = 7


def shannon(density: float) -> float:
    """Bits a position of a memoryless support."""
    return (-density * math.log2(density) - (1 - density) * math.log2(1 - density)) / density


def bits(support: Positions, size: int, layout: Layout | None, coder: coding.Coder) -> float:
    """Bits a position, once it is sure that they are read back."""
    blob = coding.pack(support, size, layout, coder)
    found = coding.unpack(Reader(memoryview(blob)), support.size, size).positions
    if not np.array_equal(found, support):
        raise AssertionError("the positions did not come back")
    return 8 * len(blob) / support.size


def random_support(size: int, density: float) -> Positions:
    """A memoryless support of exactly the density."""
    return np.sort(np.random.default_rng(1).choice(size, round(density * size), replace=False))


def clustered_support(rows: int, columns: int, density: float) -> Positions:
    """A support about as dense, whose rates differ by row and column."""
    rng = np.random.default_rng(1)
    rates = np.outer(rng.gamma(2, 1 / 2, size=rows), rng.gamma(1, size=columns)) * density
    return np.flatnonzero(rng.random((rows, columns)) < rates)


def random_table(size: int) -> None:
    """Print the bits of random supports."""
    print(f"Random supports of {size} elements, bits a position\n")
    print("| density | Shannon | smallest | of Shannon | fast (Golomb-Rice) | of Shannon |")
    print("|---|---|---|---|---|---|")
    for density in DENSITIES:
        support, bound = random_support(size, density), shannon(density)
        smallest, fast = bits(support, size, None, "smallest"), bits(support, size, None, "fast")
        print(
            f"| {density:.1%} | {bound:.3f} | {smallest:.3f} | {smallest / bound:.4f} "
            f"| {fast:.3f} | {fast / bound:.4f} |"
        )


def real_table(sample: Sample) -> None:
    """Print the mean bits of the supports of a run's updates."""
    layout = sample.layout
    print(f"\n{sample.name}: {layout.size} elements, bits a position\n")
    print("| density | Shannon | smallest | smallest, no layout | fast (Golomb-Rice) |")
    print("|---|---|---|---|---|")
    for density in DENSITIES:
        count = round(density * layout.size)
        supports = [np.sort(np.argpartition(-np.abs(update), count)[:count]) for update in sample.vectors]
        cases: list[tuple[Layout | None, coding.Coder]] = [(layout, "smallest"), (None, "smallest"), (None, "fast")]
        means = [np.mean([bits(support, layout.size, *case) for support in supports]) for case in cases]
        print(f"| {density:.1%} | {shannon(density):.2f} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")


def best_time(work: Callable[[], object]) -> float:
    """Seconds of the fastest run; the first only warms up."""
    times = []
    for _ in range(REPEATS + 1):
        start = thread_time()
        work()
        times.append(thread_time() - start)
    return min(times[1:])


def times_table() -> None:
    """Print ns a position: of a memoryless support without a layout, of clustered ones with one."""
    print("\nTimes for ten million elements at 1 %, ns a position\n")
    print("| support | coder | bits a position | encode | decode |")
    print("|---|---|---|---|---|")

    def row(name: str, support: Positions, size: int, layout: Layout | None, coder: coding.Coder) -> None:
        blob = coding.pack(support, size, layout, coder)
        encode = best_time(lambda: coding.pack(support, size, layout, coder))
        decoding = best_time(lambda: coding.unpack(Reader(memoryview(blob)), support.size, size))
        each = " | ".join(f"{seconds / support.size * 1e9:.1f}" for seconds in (encode, decoding))
        print(f"| {name} | {coder} | {bits(support, size, layout, coder):.2f} | {each} |")

    support = random_support(10_000_000, 0.01)
    row("memoryless, no layout", support, 10_000_000, None, "fast")
    row("memoryless, no layout", support, 10_000_000, None, "smallest")
    for width in (128, 1024, 4096):
        rows = 10_000_000 // width
        layout = Layout(("weight",), ((rows, width),))
        row(f"clustered, rows of {width}", clustered_support(rows, width, 0.01), layout.size, layout, "smallest")


def main() -> None:
    """Print the tables."""
    random_table(1_000_000)
    real_table(real())
    times_table()


if __name__ == "__main__":
    main()
