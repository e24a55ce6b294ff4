"""A graph's skeleton: an ONNX model whose initializers have no data, compressed; and what it wants filled.

The model's bytes are walked as protobuf (`wire format <https://protobuf.dev/programming-guides/encoding/>`_, field
numbers of ``onnx.proto``), because a node that runs a model needs no ``onnx``.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from fedglm.inference.errors import InferenceError

MAX_BYTES = 8 << 20
"""Of a skeleton, unpacked: that of a model with 12 layers has 22 kB."""

_MODEL_GRAPH, _GRAPH_INITIALIZER = 7, 5
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Tensor:
    """Field numbers of ``TensorProto``."""

    DIMS, TYPE, NAME, EXTERNAL_DATA = 1, 2, 8, 13


@dataclass(frozen=True, kw_only=True)
class Initializer:
    """A constant that a skeleton wants filled.

    Attributes:
        name: Its name, which says what it is made of (`initializers`).
        dtype: ``TensorProto.DataType``, a number.
        shape: Its shape.
    """

    name: str
    dtype: int
    shape: tuple[int, ...]


def pack_skeleton(model: bytes) -> bytes:
    """Compress a serialized ONNX model without data."""
    return zlib.compress(model, 9)


def unpack_skeleton(skeleton: bytes) -> bytes:
    """Return the serialized ONNX model of a skeleton.

    Raises:
        InferenceError: It is no skeleton, or unpacks to more than 8 MiB.
    """
    unpacker = zlib.decompressobj()
    try:
        model = unpacker.decompress(skeleton, MAX_BYTES)
    except zlib.error as exc:
        raise InferenceError(f"the graph's skeleton is damaged ({exc}); fetch the release again") from exc
    if not unpacker.eof or unpacker.unused_data:
        raise InferenceError(f"the graph's skeleton is cut short, or unpacks to more than {MAX_BYTES} bytes")
    return model


def read_initializers(model: bytes) -> tuple[Initializer, ...]:
    """List the initializers that a model leaves to be filled, in its order.

    Raises:
        InferenceError: The bytes are no such model; or an initializer's data lies elsewhere than under its own name,
            which would make the runtime read a file.
    """
    found = []
    for number, graph in _fields(memoryview(model)):
        if number != _MODEL_GRAPH or not isinstance(graph, memoryview):
            continue
        for inner, tensor in _fields(graph):
            if inner == _GRAPH_INITIALIZER and isinstance(tensor, memoryview):
                found += _read_tensor(tensor)
    if not found:
        raise InferenceError("the graph's skeleton has nothing to fill; it is no model of this program")
    return tuple(found)


def _read_tensor(tensor: memoryview) -> list[Initializer]:
    """Return the initializer, or nothing where its data stand in the model (as the axes of an operator do)."""
    name, dtype, shape, location = "", 0, [], None
    for number, value in _fields(tensor):
        match number, value:
            case (_Tensor.DIMS, int()):
                shape.append(value)
            case (_Tensor.DIMS, memoryview()):
                shape += _read_packed(value)
            case (_Tensor.TYPE, int()):
                dtype = value
            case (_Tensor.NAME, memoryview()):
                name = _text(value)
            case (_Tensor.EXTERNAL_DATA, memoryview()):
                entry = dict(_fields(value))
                if _text(entry.get(_ENTRY_KEY)) == "location":
                    location = _text(entry.get(_ENTRY_VALUE))
    if location is None:
        return []
    if location != name:
        raise InferenceError(f"the graph's skeleton wants {name!r} read from {location!r}; it must be filled in memory")
    return [Initializer(name=name, dtype=dtype, shape=tuple(shape))]


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field of a protobuf message."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise InferenceError("the graph's skeleton is no ONNX model")
        if size > len(data) - at:
            raise InferenceError("the graph's skeleton is cut short")
        yield number, data[at : at + size]
        at += size


def _read_packed(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _read_varint(data, at)
        values.append(value)
    return values


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise InferenceError("the graph's skeleton is cut short")
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise InferenceError("the graph's skeleton is no ONNX model")


def _text(value: int | memoryview | None) -> str:
    if not isinstance(value, memoryview):
        raise InferenceError("the graph's skeleton is no ONNX model")
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as exc:
        raise InferenceError("the graph's skeleton is no ONNX model") from exc
