"""How near packed weights are to the entropy of their codes, and how fast they are unpacked without compiled code.

    python benchmarks/light_format.py
    python benchmarks/light_format.py --rows 8192 --seed 1

It packs one matrix of each kind, of seeded independent codes: bits a code at a fixed width, in the entropy code
(scales, index and lanes included, a scale a row rounded to 5 bits of mantissa), and of an ideal code that knows the
shares of the codes; then how many codes a second of processor time are unpacked, the least time of three.
"""

import argparse
import time

import numpy as np

from fedglm.inference.weights.container import pack_weights, read_index, unpack_weights
from fedglm.inference.weights.halves import round_mantissa
from fedglm.inference.weights.quantized import QuantizedMatrix

COLUMNS = 320
KINDS = {
    "ternary, 31 % zeros": (-1, 1, 0.405),
    "ternary, 58 % zeros": (-1, 1, 0.806),
    "ternary, 74 % zeros": (-1, 1, 1.126),
    "INT3": (-4, 3, 0.55),
    "INT4": (-8, 7, 0.35),
    "INT8": (-128, 127, 0.03),
}
"""Least and greatest code; and for a normal variable, the threshold of a ternary code or the step of another."""


def make_matrix(kind, rows, rng):
    """Make a matrix of such codes, with a scale a row."""
    low, high, step = KINDS[kind]
    normal = rng.normal(size=(rows, COLUMNS))
    codes = np.sign(normal) * (np.abs(normal) > step) if high == 1 else np.clip(np.rint(normal / step), low, high)
    scales = round_mantissa(rng.lognormal(-3, 0.2, (rows, 1)).astype(np.float32), 5)
    return QuantizedMatrix(codes=codes.astype(np.int8), scales=scales, block=COLUMNS, low=low, high=high)


def entropy(codes):
    """Bits a code of an ideal code (Shannon 1948, theorem 9)."""
    share = np.unique(codes, return_counts=True)[1] / codes.size
    return float(-(share * np.log2(share)).sum())


def unpack_speed(blob, codes):
    """Codes a second of processor time, in millions."""
    times = []
    for _ in range(3):
        start = time.process_time()
        unpack_weights(blob)
        times.append(time.process_time() - start)
    return codes / min(times) / 1e6


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024, help="of the matrix, whose columns are 320")
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    print("| codes | fixed | coded | entropy | lanes | coded, M codes/s | fixed, M codes/s |")
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        matrix = make_matrix(kind, options.rows, np.random.default_rng(options.seed))
        fixed, coded = (pack_weights({"w": matrix}, compact=compact) for compact in (False, True))
        size, lanes = matrix.codes.size, read_index(coded)[0].lanes
        bits = [8 * len(blob) / size for blob in (fixed, coded)]
        speeds = [unpack_speed(blob, size) for blob in (coded, fixed)]
        print(
            f"| {kind} | {bits[0]:.3f} | {bits[1]:.3f} | {entropy(matrix.codes):.3f} | {lanes} "
            f"| {speeds[0]:.1f} | {speeds[1]:.0f} |"
        )


if __name__ == "__main__":
    main()
