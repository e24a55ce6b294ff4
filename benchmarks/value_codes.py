"""How many bits a sparse update should spend on its values, and how many on sending more of them.

    python benchmarks/value_codes.py [--rounds R] [--cache FOLDER] [FILE.npz]

For each density, `topk-sign` sets the bits of an update; every other code of the values then gets as many positions as
fit in the same bits, its own scales and all positions included. What counts is the energy that arrives: one less the
squared error relative to the squared norm. The updates are real ones of a GLM, error feedback included (`updates.py`),
or those of a file: see `updates.from_file`.
"""

# ruff: noqa: ARG001 - every code gets the same arguments

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from updates import CACHE, ROUNDS, from_file, real

from fedglm.compression.layout import Layout
from fedglm.compression.positions import coding
from fedglm.compression.positions import signed as signed_positions
from fedglm.compression.positions.signed import apply_signs
from fedglm.compression.values import blocks, fp16_blocks, int8_blocks, magnitudes
from fedglm.compression.vectors import Positions, Vector
from fedglm.compression.wire.envelope import Reader

DENSITIES = (0.001, 0.01, 0.05)
SCALE_BITS = 16
"""Of each scale of the codes that exist only here: a float16 would do."""

Coded: TypeAlias = tuple[Vector, int]
"""Values as they arrive, and bits of values and positions."""
ValueCode: TypeAlias = Callable[[Vector, Positions, Layout], Coded]


def packed(pack: Callable[[Vector], bytes], unpack: Callable[[Reader, int], Vector]) -> ValueCode:
    """A code that a codec uses, with the positions."""

    def code(values: Vector, at: Positions, layout: Layout) -> Coded:
        data = pack(values)
        support = coding.pack(at, layout.size, layout, "smallest")
        return unpack(Reader(memoryview(data)), values.size), 8 * (len(data) + len(support))

    return code


def signed(pack: Callable[[Vector], bytes], unpack: Callable[[Reader, int], Vector]) -> ValueCode:
    """A code of magnitudes that a codec uses, with signs and positions."""

    def code(values: Vector, at: Positions, layout: Layout) -> Coded:
        data = pack(values)
        support = signed_positions.pack(at, values < 0, layout.size, layout, "smallest")
        sent = apply_signs(unpack(Reader(memoryview(data)), values.size), values < 0)
        return sent, 8 * (len(data) + len(support))

    return code


def scaled_signs(edges_of: Callable[[Positions, Layout], np.ndarray]) -> ValueCode:
    """A sign a value, and a mean magnitude for each group of values; groups start where `edges_of` says."""

    def code(values: Vector, at: Positions, layout: Layout) -> Coded:
        edges = np.unique(edges_of(at, layout))
        edges = edges[edges < values.size]
        sizes = np.diff(edges, append=values.size)
        means = (np.add.reduceat(np.abs(values), edges) / sizes).astype(np.float32)
        support = signed_positions.pack(at, values < 0, layout.size, layout, "smallest")
        return np.sign(values) * np.repeat(means, sizes), 8 * len(support) + SCALE_BITS * edges.size

    return code


def tensor_edges(at: Positions, layout: Layout) -> np.ndarray:
    """Where the values of another tensor start."""
    return np.searchsorted(at, [part.start for part in layout.slices().values()])


def block_edges(at: Positions, layout: Layout) -> np.ndarray:
    """Where another block of values starts."""
    return np.arange(0, at.size, blocks.BLOCK)


CODES: dict[str, ValueCode] = {
    "sign": signed(magnitudes.pack, magnitudes.unpack),
    "sign, a scale a tensor": scaled_signs(tensor_edges),
    "sign, a scale for 1024 values": scaled_signs(block_edges),
    "2 bits": signed(magnitudes.pack_two, magnitudes.unpack_two),
    "int8": packed(int8_blocks.pack, int8_blocks.unpack),
    "fp16": packed(fp16_blocks.pack, fp16_blocks.unpack),
}


class Update:
    """One update, from which any number of the largest elements can be sent."""

    def __init__(self, vector: Vector, layout: Layout) -> None:
        self.vector, self.layout = vector, layout
        self.order = np.argsort(-np.abs(vector), kind="stable")
        self.norm = float(np.square(vector, dtype=np.float64).sum())

    def send(self, code: ValueCode, count: int) -> tuple[int, float]:
        """Bits of the `count` largest, and the share of the energy that arrives."""
        at = np.sort(self.order[:count])
        values = self.vector[at]
        sent, bits = code(values, at, self.layout)
        lost = np.square(values.astype(np.float64) - sent) - np.square(values, dtype=np.float64)
        return bits, -lost.sum() / self.norm

    def fill(self, code: ValueCode, bits: int) -> tuple[int, float]:
        """The largest count that fits in `bits`, by bisection, and the energy that arrives."""
        low, high = 1, self.vector.size
        while high - low > 1:
            middle = (low + high) // 2
            if middle > 4 * bits or self.send(code, middle)[0] > bits:
                high = middle
            else:
                low = middle
        return low, self.send(code, low)[1]


def main() -> None:
    """Print a table for each density."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args()
    sample = from_file(given.file, given.file.name) if given.file else real(given.rounds, given.cache)
    print(f"{sample.name}: means of {len(sample.vectors)} updates")
    updates = [Update(vector, sample.layout) for vector in sample.vectors]
    size = sample.layout.size
    for density in DENSITIES:
        count = max(1, round(density * size))
        budgets = [update.send(CODES["sign"], count)[0] for update in updates]
        spread = [np.abs(update.vector[update.order[[0, count // 2, count - 1]]]) for update in updates]
        top, middle, least = np.mean([each / each[-1] for each in spread], axis=0)
        print(f"\nThe bits of topk-sign at {density:.1%}: {np.mean(budgets) / size:.4f} an element.", end=" ")
        print(f"Magnitudes sent: largest {top:.2f}, median {middle:.2f}, smallest {least:.2f}.\n")
        print("| values | bits, with position | density | energy that arrives | of sign's |\n|---|---|---|---|---|")
        reference = 0.0
        for name, code in CODES.items():
            results = [update.fill(code, bits) for update, bits in zip(updates, budgets, strict=True)]
            sent, energy = np.mean(results, axis=0)
            reference = reference or energy
            each = np.mean(budgets) / sent
            print(f"| {name} | {each:.2f} | {sent / size:.3%} | {energy:.2%} | {energy / reference:.3f} |")


if __name__ == "__main__":
    main()
