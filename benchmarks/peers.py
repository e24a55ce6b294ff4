"""What others send for the same update, run for real: each peer codes a vector to bytes and back.

    Flower      the bytes that flwr itself makes of float32 arrays (ArrayRecord to protobuf)
    FP16        float16, without scales; and zstandard on top of it
    torch.topk  what one would write by hand: int32 positions, float16 values
    SparseLoCo  top-k within chunks of 4096 (`sparseloco`), in three ways to write positions and values

NNCodec and NVFLARE's 8-bit quantizer run in a process of their own: see `foreign`.
"""

import importlib.util
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Protocol, TypeAlias

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as RecordDictProto
from sparseloco import SparseLoCo

from fedglm.compression.layout import Layout
from fedglm.compression.vectors import Vector

Found: TypeAlias = "tuple[np.ndarray, Vector] | Vector"
"""What a decoder gives: the vector, or positions and values where it stops there, as our sparse codecs do."""


class Scheme(Protocol):
    """A way to code the updates of one layout."""

    def encode(self, vector: Vector) -> bytes:
        """All that travels."""

    def decode(self, blob: bytes) -> Found:
        """What arrives."""


@dataclass(frozen=True)
class Peer:
    """A peer in this process.

    Attributes:
        name: As in the table.
        value_bits: Bits of a value, for the bound.
        make: The scheme for a layout and a density.
        sparse: Whether the density matters.
    """

    name: str
    value_bits: float
    make: Callable[[Layout, float], Scheme]
    sparse: bool = False


def peers() -> list[Peer]:
    """All peers that can run in this process; zstandard only where `pip install '.[bench]'` brought it."""
    known = [
        Peer("Flower, FP32 arrays", 32, lambda layout, _: Flower(layout)),
        Peer("FP16, no scales", 16, lambda *_: Fp16()),
        Peer("torch.topk, int32 + FP16", 16, lambda _, density: TopK(density), sparse=True),
    ]
    if importlib.util.find_spec("zstandard"):
        known.append(Peer("FP16 + zstandard", 16, lambda *_: Fp16(zstandard=True)))
    else:
        print("zstandard is left out: it is not installed (pip install '.[bench]')")
    for positions, bits in (("12", 8), ("12", 2), ("buckets", 2)):
        make = partial(SparseLoCo, positions, bits)
        known.append(Peer(f"SparseLoCo, {positions} + {bits} bits", bits, make, sparse=True))
    return known


def versions() -> str:
    """What runs here, in one line."""
    names = ["numpy", "numba", "torch", "flwr", *(["zstandard"] if importlib.util.find_spec("zstandard") else [])]
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


@dataclass(frozen=True)
class TopK:
    """`torch.topk` of the magnitudes, int32 positions and float16 values."""

    density: float

    def encode(self, vector: Vector) -> bytes:
        """Positions, then values."""
        tensor = torch.from_numpy(vector)
        positions = torch.topk(tensor.abs(), max(1, round(self.density * vector.size)), sorted=False).indices
        return positions.to(torch.int32).numpy().tobytes() + tensor[positions].to(torch.float16).numpy().tobytes()

    def decode(self, blob: bytes) -> Found:
        """Positions and values again."""
        count = len(blob) // 6
        return np.frombuffer(blob, "<i4", count), np.frombuffer(blob, "<f2", offset=4 * count).astype(np.float32)


@dataclass(frozen=True)
class Flower:
    """The content of a Flower message with one array a tensor."""

    layout: Layout

    def encode(self, vector: Vector) -> bytes:
        """What flwr puts on the wire."""
        slices = self.layout.slices()
        shapes = zip(self.layout.names, self.layout.shapes, strict=True)
        arrays = {name: Array(vector[slices[name]].reshape(shape)) for name, shape in shapes}
        return bytes(recorddict_to_proto(RecordDict({"arrays": ArrayRecord(arrays)})).SerializeToString())

    def decode(self, blob: bytes) -> Found:
        """The arrays again, end to end."""
        arrays = recorddict_from_proto(RecordDictProto.FromString(blob)).array_records["arrays"]
        return np.concatenate([arrays[name].numpy().reshape(-1) for name in self.layout.names])


@dataclass(frozen=True)
class Fp16:
    """Each value as float16, two bytes a value; or these bytes through zstandard at its usual level, 3."""

    zstandard: bool = False

    def encode(self, vector: Vector) -> bytes:
        """All values."""
        halves = torch.from_numpy(vector).to(torch.float16).numpy()
        if not self.zstandard:
            return halves.tobytes()
        import zstandard

        return zstandard.ZstdCompressor(level=3).compress(halves)

    def decode(self, blob: bytes) -> Found:
        """Float32 again."""
        if self.zstandard:
            import zstandard

            blob = zstandard.ZstdDecompressor().decompress(blob)  # our own bytes: from a stranger it could be a bomb
        return np.frombuffer(blob, "<f2").astype(np.float32)
