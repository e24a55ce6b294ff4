"""The index of packed weights: how each tensor is packed, as the metadata of ``weights.safetensors`` say it.

The text in the metadata is base85 of zlib of JSON, because so many names would be a tenth of a small model.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.packing import PACKINGS
from fedglm.inference.weights.rans import MAX_LANES

MAX_CODES_PER_LANE: Final = 1 << 16
"""Each is an operation of numpy or several, so that they bound the time."""
MAX_INDEX_BYTES: Final = 1 << 20
"""Of the JSON; a tensor takes about 100."""
_MAX_NAME: Final = 200
_MAX_DIMENSIONS: Final = 8
CODED_FLOATS: Final = "f16-coded"
_FLOATS: Final = ("f16", CODED_FLOATS, "f32")


@dataclass(frozen=True)
class FloatEntry:
    """A tensor of floats.

    Attributes:
        name: Name of the tensor.
        shape: Its shape.
        dtype: ``f16`` where every value is exactly one, ``f16-coded`` where they are in the entropy code, else ``f32``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        _check_name_and_shape(self.name, self.shape)
        if self.dtype not in _FLOATS:
            raise InferenceError(f"{self.name}: floats are {' or '.join(_FLOATS)}, not {self.dtype!r:.40}")

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class MatrixEntry:
    """A quantized matrix.

    Attributes:
        name: Name of the tensor.
        shape: Rows and columns.
        packing: Name of the packing of its codes, one of `PACKINGS`.
        block: Number of columns that share a scale.
        low: Least code.
        high: Greatest code.
        zeros: Whether it has zero points.
    """

    name: str
    shape: tuple[int, int]
    packing: str
    block: int
    low: int
    high: int
    zeros: bool

    def __post_init__(self) -> None:
        _check_name_and_shape(self.name, self.shape)
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise InferenceError(f"{self.name}: a quantized matrix has rows and columns, not the shape {self.shape}")
        if not all(map(_is_int, (self.block, self.low, self.high))) or type(self.zeros) is not bool:
            raise InferenceError(f"{self.name}: block, least and greatest code are integers")
        if not (-128 <= self.low <= self.high <= 127 and 1 <= self.block < 1 << 31):
            raise InferenceError(f"{self.name}: no codes from {self.low} to {self.high} in blocks of {self.block}")
        if self.packing not in PACKINGS or not PACKINGS[self.packing].takes(self.levels):
            raise InferenceError(f"{self.name}: no packing of {self.levels} levels is called {self.packing!r:.40}")

    @property
    def count(self) -> int:
        """Number of codes."""
        return self.shape[0] * self.shape[1]

    @property
    def levels(self) -> int:
        """Number of codes that the scheme can write."""
        return self.high - self.low + 1

    @property
    def blocks(self) -> tuple[int, int]:
        """Shape of the scales and zero points."""
        return self.shape[0], -(-self.shape[1] // self.block)


Entry = FloatEntry | MatrixEntry


@dataclass(frozen=True, kw_only=True)
class Index:
    """How a file of weights is packed.

    Attributes:
        lanes: Number of lanes of the entropy code.
        words: Number of its words.
        raw: Number of bytes of its raw bits, hidden ones included.
        scales_from_previous: Whether scales are differences to those of an earlier release.
        floats_from_previous: Whether coded floats are.
        entries: The tensors, in the order of the file.

    Raises:
        InferenceError: A number is out of range, or a name occurs twice.
    """

    lanes: int
    words: int
    raw: int
    scales_from_previous: bool
    floats_from_previous: bool
    entries: tuple[Entry, ...]

    def __post_init__(self) -> None:
        if not all(_is_int(value) and 0 <= value < 1 << 40 for value in (self.lanes, self.words, self.raw)):
            raise InferenceError("the index of the weights has no lanes and words")
        if not 0 < self.lanes <= MAX_LANES or self._count_coded() > MAX_CODES_PER_LANE * self.lanes:
            raise InferenceError(f"the index of the weights has {self.lanes} lanes, which do not fit its tensors")
        if len({entry.name for entry in self.entries}) != len(self.entries):
            raise InferenceError("the index of the weights names a tensor twice")

    def _count_coded(self) -> int:
        coded = (isinstance(entry, MatrixEntry) or entry.dtype == CODED_FLOATS for entry in self.entries)
        return sum(entry.count for entry, counts in zip(self.entries, coded, strict=True) if counts)

    def count_parameters(self) -> int:
        """Return the number of elements of all tensors."""
        return sum(entry.count for entry in self.entries)

    def to_text(self) -> str:
        """Return the text for the metadata."""
        rows = [_to_row(entry) for entry in self.entries]
        numbers = [self.lanes, self.words, self.raw, self.scales_from_previous + 2 * self.floats_from_previous]
        content = json.dumps([*numbers, rows], separators=(",", ":"))
        return base64.b85encode(zlib.compress(content.encode(), 9)).decode()

    @classmethod
    def from_text(cls, text: str) -> Index:
        """Parse the untrusted text of `to_text`.

        Raises:
            InferenceError: It is none.
        """
        try:
            unpacker = zlib.decompressobj()
            content = unpacker.decompress(base64.b85decode(text), MAX_INDEX_BYTES)
            if not unpacker.eof or unpacker.unused_data:
                raise InferenceError(f"the index of the weights is damaged or longer than {MAX_INDEX_BYTES} bytes")
            lanes, words, raw, differences, rows = json.loads(content)
            entries = tuple(_from_row(row) for row in rows)
        except (ValueError, TypeError, RecursionError, binascii.Error, zlib.error) as exc:
            if isinstance(exc, InferenceError):
                raise
            raise InferenceError(f"the index of the weights is damaged: {exc}"[:200]) from exc
        if not _is_int(differences) or not 0 <= differences < 4:
            raise InferenceError("the index of the weights does not say what they are differences to")
        return cls(
            lanes=lanes,
            words=words,
            raw=raw,
            scales_from_previous=bool(differences & 1),
            floats_from_previous=bool(differences & 2),
            entries=entries,
        )


def _to_row(entry: Entry) -> list[Any]:
    if isinstance(entry, FloatEntry):
        return [entry.name, entry.shape, entry.dtype]
    return [entry.name, entry.shape, entry.packing, entry.block, entry.low, entry.high, *([1] if entry.zeros else [])]


def _from_row(row: Any) -> Entry:
    name, shape, kind, *rest = row
    if not rest:
        return FloatEntry(name, tuple(shape), kind)
    if rest[3:] not in ([], [1]) or len(rest) < 3:
        raise InferenceError("a quantized matrix of the index has a block, a least and a greatest code")
    return MatrixEntry(name, tuple(shape), kind, rest[0], rest[1], rest[2], bool(rest[3:]))


def _is_int(value: object) -> bool:
    return type(value) is int


def _check_name_and_shape(name: object, shape: Sequence[object]) -> None:
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise InferenceError(f"a tensor of the index has no name of at most {_MAX_NAME} characters")
    sizes = [size for size in shape if isinstance(size, int) and _is_int(size) and 0 <= size < 1 << 31]
    if len(sizes) != len(shape) or len(sizes) > _MAX_DIMENSIONS or math.prod(max(size, 1) for size in sizes) >= 1 << 40:
        raise InferenceError(f"{name}: its shape is none of at most {_MAX_DIMENSIONS} dimensions")
