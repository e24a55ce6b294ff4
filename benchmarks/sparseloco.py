"""SparseLoCo's code of an update, from its description (arXiv 2508.15706) and what its public code does (templar).

The largest magnitudes of each chunk of 4096: blocks of 64 x 64 of a matrix, runs of 4096 elsewhere. Values take four
levels: bins of a quarter of six standard deviations around the mean of the tensor's values, each decoded as the mean of
what fell into it. Positions within a chunk are written

    12       in 12 bits, two in three bytes, as published
    buckets  as the later public code does: a chunk is cut into buckets of 64 or 128, whichever is shorter; a Rice code
             of each bucket's count, then the places within the bucket or a bitmap

and values in 8 bits (as published: a uint8 each) or packed in 2.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from fedglm.compression.layout import Layout
from fedglm.compression.vectors import Vector

CHUNK = 4096
_SIDE = 64
_LEVELS = 4
_SIGMAS = 6
_TENSOR_BYTES = 4 * (1 + _LEVELS)

_Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SparseLoCo:
    """The scheme, with one of the ways to write positions (`12`, `buckets`) and values (8 or 2 bits)."""

    positions: str
    value_bits: int
    layout: Layout
    density: float

    def encode(self, vector: Vector) -> bytes:
        """Code each tensor: shift and levels as float32, values, positions."""
        parts = []
        for where, shape in zip(self.layout.slices().values(), self.layout.shapes, strict=True):
            for chunks in _chunked(torch.from_numpy(vector[where]), shape):
                chosen = torch.topk(chunks.abs(), _kept(self.density, chunks.shape[1]), dim=1, sorted=False).indices
                chosen = chosen.sort(dim=1).values
                levels, shift, table = _quantized(torch.gather(chunks, 1, chosen))
                parts += [shift.numpy().tobytes(), table.numpy().tobytes()]
                parts += [self._pack_values(levels.numpy().reshape(-1)), self._pack_positions(chosen.numpy())]
        return b"".join(parts)

    def decode(self, blob: bytes) -> tuple[_Rows, Vector]:
        """Positions and values; what the sizes of the parts follow from is known to both ends."""
        at, everywhere, values = 0, [], []
        for tensor, shape in zip(self.layout.slices().values(), self.layout.shapes, strict=True):
            for where in _chunked(torch.arange(tensor.start, tensor.stop), shape):
                rows, count = where.shape[0], _kept(self.density, where.shape[1])
                shift, *table = np.frombuffer(blob, "<f4", 1 + _LEVELS, at)
                at += _TENSOR_BYTES
                levels, used = self._unpack_values(blob, at, rows * count)
                at += used
                chosen, used = self._unpack_positions(blob, at, rows, count)
                at += used
                everywhere.append(np.take_along_axis(where.numpy(), chosen, 1).reshape(-1))
                values.append(np.asarray(table, np.float32)[levels] + shift)
        return np.concatenate(everywhere), np.concatenate(values)

    def _pack_values(self, levels: npt.NDArray[np.uint8]) -> bytes:
        if self.value_bits == 8:
            return levels.tobytes()
        padded = np.zeros(-(-levels.size // 4) * 4, np.uint8)
        padded[: levels.size] = levels
        return (padded[::4] | padded[1::4] << 2 | padded[2::4] << 4 | padded[3::4] << 6).tobytes()

    def _unpack_values(self, blob: bytes, at: int, count: int) -> tuple[npt.NDArray[np.uint8], int]:
        if self.value_bits == 8:
            return np.frombuffer(blob, np.uint8, count, at), count
        packed = np.frombuffer(blob, np.uint8, -(-count // 4), at)
        return (packed[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(-1)[:count], packed.size

    def _pack_positions(self, rows: _Rows) -> bytes:
        if self.positions == "buckets":
            return b"".join(_bucket_code(row.tolist()) for row in rows)
        flat = rows.reshape(-1)
        even = np.append(flat, 0) if flat.size % 2 else flat
        first, second = even[::2], even[1::2]
        triples = np.stack([first & 0xFF, first >> 8 | (second & 0xF) << 4, second >> 4], axis=1)
        return triples.astype(np.uint8).tobytes()

    def _unpack_positions(self, blob: bytes, at: int, rows: int, count: int) -> tuple[_Rows, int]:
        if self.positions == "buckets":
            start, found = at, []
            for _ in range(rows):
                length = int.from_bytes(blob[at : at + 2], "little")
                found.append(_bucket_positions(blob[at + 2 : at + 2 + length]))
                at += 2 + length
            return np.array(found, np.int64), at - start
        triples = np.frombuffer(blob, np.uint8, 3 * -(-rows * count // 2), at).reshape(-1, 3).astype(np.int64)
        low, middle, high = triples.T
        pairs = np.stack([low | (middle & 0xF) << 8, middle >> 4 | high << 4], axis=1)
        return pairs.reshape(-1)[: rows * count].reshape(rows, count), triples.size


def _kept(density: float, size: int) -> int:
    return max(1, round(density * size))


def _chunked(flat: torch.Tensor, shape: tuple[int, ...]) -> list[torch.Tensor]:
    """A tensor as rows of 4096, and the rest of it as one shorter row."""
    if len(shape) == 2 and not shape[0] % _SIDE and not shape[1] % _SIDE:
        blocks = flat.reshape(shape[0] // _SIDE, _SIDE, shape[1] // _SIDE, _SIDE).transpose(1, 2)
        return [blocks.reshape(-1, CHUNK)]
    whole = flat.numel() // CHUNK * CHUNK
    return [
        part.reshape(rows, -1) for part, rows in ((flat[:whole], whole // CHUNK), (flat[whole:], 1)) if part.numel()
    ]


def _quantized(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels (uint8), and the float32 by which they are decoded: the mean, and the mean of each bin around it."""
    shift = values.mean()
    centred = values - shift
    width = _SIGMAS / _LEVELS * float(centred.norm()) / math.sqrt(max(1, values.numel() - 1)) or 1.0
    levels = (centred / width + _LEVELS // 2).round().clamp(0, _LEVELS - 1).to(torch.uint8)
    flat = levels.reshape(-1).long()
    sums = torch.zeros(_LEVELS).scatter_add_(0, flat, centred.reshape(-1))
    return levels, shift, sums / torch.bincount(flat, minlength=_LEVELS).clamp(min=1)


def _bucket_code(row: list[int]) -> bytes:
    """The ascending positions of one chunk: two bytes of length, then bits from the lowest."""
    best, best_bits = 0, 1 << 30
    for width in (6, 7):
        counts = [0] * (CHUNK >> width)
        for position in row:
            counts[position >> width] += 1
        rice = _rice_parameter(len(row), width)
        lengths = sum((count >> rice) + 1 + rice for count in counts)
        used = sum(1 for count in counts if count)
        for bitmap, bits in ((0, lengths + width * len(row)), (1, lengths + (used << width))):
            if bits < best_bits:
                best_bits, best = bits, _write_buckets(row, counts, width, rice, bitmap)
    code = best.to_bytes(-(-(10 + best_bits) // 8), "little")
    return len(code).to_bytes(2, "little") + code


def _rice_parameter(count: int, width: int) -> int:
    return max(0, round(math.log2(count / CHUNK * 2**width)))


def _write_buckets(row: list[int], counts: list[int], width: int, rice: int, bitmap: int) -> int:
    """The bits as one number: 5 for the width, 4 for the Rice parameter, 1 for bitmaps, then bucket by bucket."""
    bits, at, first = width | rice << 5 | bitmap << 9, 10, 0
    for count in counts:
        quotient = count >> rice
        bits |= ((1 << quotient) - 1) << at  # ones, and a zero
        at += quotient + 1
        bits |= (count & (1 << rice) - 1) << at
        at += rice
        places = [position & (1 << width) - 1 for position in row[first : first + count]]
        first += count
        if bitmap and count:
            bits |= sum(1 << place for place in places) << at
            at += 1 << width
        elif count:
            for place in places:
                bits |= place << at
                at += width
    return bits


def _bucket_positions(code: bytes) -> list[int]:
    """What `_bucket_code` wrote, without its length."""
    bits = int.from_bytes(code, "little")
    width, rice, bitmap = bits & 31, bits >> 5 & 15, bits >> 9 & 1
    bits >>= 10
    row = []
    for bucket in range(CHUNK >> width):
        quotient = 0
        while bits & 1:
            quotient += 1
            bits >>= 1
        bits >>= 1
        count = (quotient << rice) + (bits & (1 << rice) - 1)
        bits >>= rice
        if bitmap and count:
            row += [bucket << width | place for place in range(1 << width) if bits >> place & 1]
            bits >>= 1 << width
            continue
        for _ in range(count):
            row.append(bucket << width | bits & (1 << width) - 1)
            bits >>= width
    return row
