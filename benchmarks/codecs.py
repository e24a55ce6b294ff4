"""How small, how faithful and how fast the codecs are, beside what others send: one table an update, in one run.

    python benchmarks/codecs.py [--size N] [--rounds R] [--density D ...] [--only WORD ...] [--json] [--no-foreign]
                                [--cache FOLDER]

One thread. Every codec of `codec_names()` and every peer of `peers`, on a normal update of 10 million values and on
what the nodes of a federation that learns a GLM had to send over a whole run. The columns:

    bytes      the whole message, the mean over the updates
    of FP32    the same as a share of 4 bytes a parameter, and its inverse
    bits       of the whole message, for each value that it names
    bound      Shannon's for a memoryless support, plus the bits of a value; nothing where neither is known
    energy     1 - |update - decoded|^2 / |update|^2
    encode,    best of five after a first run, in ns a parameter and, in brackets, as a ratio to `np.copyto` of the same
    decode     update in the same run: that ratio is what carries over to another machine. A sparse codec stops at
               positions and values, as the server adds them up.
"""

import argparse
import contextlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from foreign import PINS, ForeignPeers
from peers import Peer, peers, versions
from updates import CACHE, ROUNDS, Sample, normal, real

from fedglm.compression.codec import codec_names, codec_options, decode, make_codec
from fedglm.compression.layout import Layout
from fedglm.compression.vectors import Vector

REPEATS = 5
LONG_S = 3.0
"""What takes longer than this is timed once."""
DENSITIES = (0.001, 0.01, 0.05)
RANKS = (1, 2, 4, 8)
MORE: dict[str, list[dict[str, object]]] = {
    "topk-sign": [{"density": 0.01, "coder": "fast"}, {"density": 0.01, "overshoot": 2.0}]
}
"""Settings to try besides each density, each rank, and each pair of both where a codec takes both."""
VALUE_BITS = {"dense-fp32": 32, "dense-fp16": 16, "int8": 8, "topk-fp16": 16, "topk-int8": 8, "topk-2bit": 2} | {
    "topk-sign": 1
}


@dataclass(frozen=True)
class Row:
    """One line of the table; sizes and energy are means over the updates, times are of the first."""

    update: str
    codec: str
    bytes: float
    share: float
    bits: float
    bound: float | None
    energy: float
    encode_ns: float
    decode_ns: float
    encode_copies: float
    decode_copies: float


@dataclass(frozen=True)
class Result:
    """What came of one update: bytes, values named, the decoded vector, seconds where they were taken."""

    bytes: int
    sent: int
    decoded: Vector
    encode: float = math.nan
    decode: float = math.nan


Measure = Callable[[Vector, Layout, bool], Result]
"""Codes and decodes an update; the flag asks for times."""


def best_time(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs, the first of which only warms up."""
    times: list[float] = []
    while len(times) <= REPEATS and (not times or sum(times) < LONG_S):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return min(times[1:] or times)


def shannon(density: float) -> float:
    """Bits a position of a memoryless support."""
    return (-density * math.log2(density) - (1 - density) * math.log2(1 - density)) / density if density < 1 else 0.0


def of_codec(name: str, settings: Mapping[str, object]) -> Measure:
    """One of our codecs."""

    def measure(vector: Vector, layout: Layout, timed: bool) -> Result:
        codec = make_codec(name, layout=layout, **settings)
        blob = codec.encode(vector)
        update = decode(blob, size=vector.size)
        positions = getattr(update, "positions", None)
        sent = vector.size if positions is None else positions.size
        if not timed:
            return Result(len(blob), sent, update.to_dense())
        encoding, decoding = best_time(lambda: codec.encode(vector)), best_time(lambda: decode(blob, size=vector.size))
        return Result(len(blob), sent, update.to_dense(), encoding, decoding)

    return measure


def of_peer(peer: Peer, density: float) -> Measure:
    """A peer in this process."""

    def measure(vector: Vector, layout: Layout, timed: bool) -> Result:
        scheme = peer.make(layout, density)
        blob = scheme.encode(vector)
        found = scheme.decode(blob)
        if isinstance(found, tuple):
            positions, values = found
            dense = np.zeros_like(vector)
            dense[positions] = values
            sent = positions.size
        else:
            dense, sent = found, vector.size
        if not timed:
            return Result(len(blob), sent, dense)
        encoding, decoding = best_time(lambda: scheme.encode(vector)), best_time(lambda: scheme.decode(blob))
        return Result(len(blob), sent, dense, encoding, decoding)

    return measure


def of_foreign(peers: ForeignPeers, scheme: str, density: float) -> Measure:
    """A peer in its own process, where it is timed."""

    def measure(vector: Vector, layout: Layout, timed: bool) -> Result:
        coded = peers.measure(scheme, vector, layout, density, REPEATS if timed else 1)
        return Result(coded.bytes, coded.sent, coded.decoded, coded.encode, coded.decode)

    return measure


def settings_of(name: str, densities: list[float]) -> list[dict[str, object]]:
    """The settings under which a codec is measured."""
    known = codec_options(name)
    if "rank" in known and "density" in known:
        return [{"rank": rank, "density": density} for rank in RANKS[1:3] for density in densities]
    if "rank" in known:
        return [{"rank": rank} for rank in RANKS]
    if "density" in known:
        more = [settings for settings in MORE.get(name, []) if settings.keys() <= set(known)]
        return [*({"density": density} for density in densities), *more]
    return [{}]


def title(name: str, settings: Mapping[str, object]) -> str:
    """A codec with its settings, as in the table."""
    words = [
        f"{100 * float(str(value)):g} %" if key == "density" else f"{key} {value}" for key, value in settings.items()
    ]
    return f"{name} {', '.join(words)}".strip()


def cases(
    densities: list[float], known: list[Peer], foreign: ForeignPeers | None
) -> Iterator[tuple[str, float | None, Measure]]:
    """Every line of the table: its title, the bits of a value where they are known, and how it is measured."""
    for name in codec_names():
        for settings in settings_of(name, densities):
            yield title(name, settings), VALUE_BITS.get(name), of_codec(name, settings)
    for peer in known:
        for density in densities if peer.sparse else [1.0]:
            settings = {"density": density} if peer.sparse else {}
            yield title(peer.name + (":" if peer.sparse else ""), settings), peer.value_bits, of_peer(peer, density)
    if foreign is not None:
        yield "blockwise8 (NVFLARE's)", 8, of_foreign(foreign, "blockwise8", 1.0)
        for density in densities:
            yield title("NNCodec:", {"density": density}), 1, of_foreign(foreign, "nncodec", density)


def row(sample: Sample, name: str, value_bits: float | None, measure: Measure, copy: float) -> Row:
    """Measure one line on all updates of a sample."""
    size = sample.layout.size
    results = [measure(vector, sample.layout, index == 0) for index, vector in enumerate(sample.vectors)]
    energies = [
        1
        - float(np.square(vector - result.decoded, dtype=np.float64).sum() / np.square(vector, dtype=np.float64).sum())
        for vector, result in zip(sample.vectors, results, strict=True)
    ]
    length = float(np.mean([result.bytes for result in results]))
    sent = float(np.mean([result.sent for result in results]))
    return Row(
        update=sample.name,
        codec=name,
        bytes=length,
        share=length / (4 * size),
        bits=8 * length / sent,
        bound=None if value_bits is None else value_bits + shannon(sent / size),
        energy=float(np.mean(energies)),
        encode_ns=results[0].encode / size * 1e9,
        decode_ns=results[0].decode / size * 1e9,
        encode_copies=results[0].encode / copy,
        decode_copies=results[0].decode / copy,
    )


def copy_time(vector: Vector) -> float:
    """Seconds of `np.copyto`, many at a time where one is too short to time."""
    target, times = np.empty_like(vector), max(1, 10_000_000 // vector.size)

    def work() -> None:
        for _ in range(times):
            np.copyto(target, vector)

    return best_time(work) / times


HEAD = ("codec", "bytes", "of FP32", "bits", "bound", "energy", "encode", "decode")


def line(cells: tuple[str, ...]) -> str:
    """Markdown, in columns."""
    widths = (35, 8, 16, 5, 5, 7, 13, 12)
    padded = [
        cell.ljust(w) if at == 0 else cell.rjust(w) for at, (cell, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "|" + "|".join(padded) + "|"


def cells(found: Row) -> tuple[str, ...]:
    """A row as text."""
    bound = "" if found.bound is None else f"{found.bound:.2f}"
    times = ((found.encode_ns, found.encode_copies), (found.decode_ns, found.decode_copies))
    return (
        found.codec,
        f"{found.bytes:.0f}",
        f"{found.share:.3%} ({1 / found.share:.0f}x)",
        f"{found.bits:.2f}",
        bound,
        f"{found.energy:.2%}",
        *(f"{ns:.2f} ({copies:.0f}x)" if copies >= 10 else f"{ns:.2f} ({copies:.1f}x)" for ns, copies in times),
    )


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description="Codecs and peers on the same updates, one table each.")
    parser.add_argument("--size", type=int, default=10_000_000, help="values of the normal update; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds of the run behind the real updates; 0: none")
    parser.add_argument("--density", type=float, nargs="+", default=list(DENSITIES), help="densities of sparse codecs")
    parser.add_argument("--only", nargs="+", default=[], help="lines whose name holds one of these words")
    parser.add_argument("--no-foreign", action="store_true", help="without the peers that need their own environment")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder for the run and for that environment")
    parser.add_argument("--json", action="store_true", help="one object a line instead of tables")
    return parser.parse_args()


def main() -> None:
    """Print the tables."""
    given = options()
    torch.set_num_threads(1)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr) if given.json else contextlib.nullcontext())
        foreign = None
        if not given.no_foreign:
            try:
                foreign = stack.enter_context(ForeignPeers.running(given.cache))
            except RuntimeError as exc:
                print(f"NNCodec and blockwise8 are left out: {exc}")
        samples = [normal(given.size)] if given.size else []
        samples += [real(given.rounds, given.cache)] if given.rounds else []
        known = peers()
        print(versions())
        if foreign:
            print("in their own environment: " + ", ".join(f"{name} {version}" for name, version in PINS.items()))
        for sample in samples:
            copy = copy_time(sample.vectors[0])
            print(f"\n{sample.name}; np.copyto {copy / sample.layout.size * 1e9:.3f} ns a value\n")
            if not given.json:
                print(line(HEAD))
                print("|" + "---|" * len(HEAD))
            for name, value_bits, measure in cases(given.density, known, foreign):
                if given.only and not any(word.lower() in name.lower() for word in given.only):
                    continue
                found = row(sample, name, value_bits, measure, copy)
                if given.json:
                    print(json.dumps(asdict(found)), file=sys.__stdout__, flush=True)
                else:
                    print(line(cells(found)), flush=True)


if __name__ == "__main__":
    main()
