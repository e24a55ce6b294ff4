"""The header of a GGUF file: metadata, and where each tensor lies; every length is checked before it is believed.

Layout, little-endian (GGUF specification, ggml/docs/gguf.md): ``"GGUF"``, version u32, number of tensors u64, of
metadata u64; each metadata is a string, a type u32 and a value; each tensor a string, number of dimensions u32, these
u64 (the fastest first), a type u32 and an offset u64 from the start of the data, which is aligned. A string is a length
u64 and UTF-8. (`gguf.GGUFReader` makes an array of each string, which takes 12 s for a vocabulary of 49,152, and
believes lengths that point behind the end.)
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from fedglm.autoglm.errors import ModelError
from fedglm.core.untrusted_files import check_regular

MAX_HEADER: Final = 2**26
"""Maximum length of a header in bytes: a vocabulary of 256,000 tokens with its merges has about 10 MB."""
_MAX_ENTRIES: Final = 2**16
_MAX_DIMENSIONS: Final = 4
_STRING, _ARRAY = 8, 9
_SCALARS: Final = ("<u1", "<i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8")


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies.

    Attributes:
        shape: Dimensions, the slowest first, as in numpy.
        kind: How its elements are stored.
        offset: First byte in the file.
        nbytes: Number of bytes.
    """

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata by key, numbers and texts as Python's, arrays as lists or numpy arrays; and tensors by name."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file.

    Raises:
        ModelError: It is no GGUF file of version 2 or 3, is damaged, or ends before its tensors do.
        OSError: The file cannot be read.
    """
    check_regular(path)
    with open(path, "rb") as file:
        cursor = _Cursor(file.read(MAX_HEADER))
        size = file.seek(0, 2)
    try:
        return _read_header(cursor, size)
    except (struct.error, UnicodeDecodeError) as exc:
        raise ModelError("it is cut off or damaged: its header makes no sense; fetch it again") from exc


class _Cursor:
    """Reads a header from its start."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def number(self, form: str) -> Any:
        """Read a number; ``form`` as in `struct`."""
        (value,) = struct.unpack_from(form, self._data, self.at)
        self.at += struct.calcsize(form)
        return value

    def take(self, length: int) -> bytes:
        """Take so many bytes.

        Raises:
            struct.error: There are fewer.
        """
        self.need(length)
        taken = self._data[self.at : self.at + length]
        self.at += length
        return taken

    def need(self, length: int) -> None:
        if length > len(self._data) - self.at:
            raise struct.error(f"{length} bytes are wanted behind the end")

    def text(self) -> str:
        return self.take(self.number("<Q")).decode()

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            return np.frombuffer(self.take(_dtype(kind).itemsize), _dtype(kind))[0].item()
        element, count = self.number("<I"), self.number("<Q")
        if element == _STRING:
            self.need(8 * count)  # a length each, at least
            return [self.text() for _ in range(count)]
        return np.frombuffer(self.take(count * _dtype(element).itemsize), _dtype(element))


def _dtype(kind: int) -> np.dtype[Any]:
    if kind >= len(_SCALARS) or (name := _SCALARS[kind]) is None:
        raise struct.error(f"no scalar is of the kind {kind}")
    return np.dtype(name)


def _read_header(cursor: _Cursor, size: int) -> GgufHeader:
    if cursor.take(4) != b"GGUF":
        raise ModelError("it is no GGUF file")
    if (version := cursor.number("<I")) not in (2, 3):
        raise ModelError(f"it is GGUF of version {version}; 2 and 3 are read, on little-endian machines")
    tensors, entries = cursor.number("<Q"), cursor.number("<Q")
    if max(tensors, entries) > _MAX_ENTRIES:
        raise ModelError(f"its header counts {tensors} tensors and {entries} metadata; {_MAX_ENTRIES} are read at most")
    metadata = {}
    for _ in range(entries):
        key = cursor.text()
        metadata[key] = cursor.value(cursor.number("<I"))
    described = [_describe_tensor(cursor) for _ in range(tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 2**20:
        raise ModelError("its alignment is no positive number")
    start = -(-cursor.at // alignment) * alignment
    found: dict[str, GgufTensor] = {}
    for name, tensor in described:
        placed = GgufTensor(tensor.shape, tensor.kind, start + tensor.offset, tensor.nbytes)
        if placed.offset + placed.nbytes > size:
            raise ModelError(f"the tensor {name} ends behind the end of the file: it is cut off; fetch it again")
        if name in found:
            raise ModelError(f"the tensor {name} is there twice")
        found[name] = placed
    return GgufHeader(metadata, found)


def _describe_tensor(cursor: _Cursor) -> tuple[str, GgufTensor]:
    """Read a tensor's description, its offset still from the start of the data."""
    name, dimensions = cursor.text(), cursor.number("<I")
    if not 0 < dimensions <= _MAX_DIMENSIONS:
        raise ModelError(f"the tensor {name} has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))[::-1]
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    try:
        block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    except ValueError as exc:
        raise ModelError(
            f"the tensor {name} is stored in a way that the installed gguf does not know ({kind})"
        ) from exc
    if 0 in shape or shape[-1] % block:
        raise ModelError(f"the tensor {name} of shape {shape} has no whole blocks of {block}")
    return name, GgufTensor(shape, GGMLQuantizationType(kind), offset, math.prod(shape) // block * block_bytes)
