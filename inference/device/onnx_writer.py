"""A writer of small ONNX models in the protobuf wire format, because a device has no ``onnx``.

`Wire format <https://protobuf.dev/programming-guides/encoding/>`_; field numbers of ``onnx.proto`` (ONNX 1.20).
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy.typing as npt

OPSET, IR_VERSION = 24, 11
FLOAT, INT8, INT64, BOOL, INT4 = 1, 3, 7, 9, 22
"""``TensorProto.DataType``."""
_TYPES: Final = {"float32": FLOAT, "int8": INT8, "int64": INT64, "bool": BOOL}
_FLOAT_ATTRIBUTE, _INT_ATTRIBUTE = 1, 2
_VARINT, _BYTES, _FIXED32 = 0, 2, 5


def write_node(operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: float | int) -> bytes:
    """Write a ``NodeProto`` of the standard domain; an attribute is an int or a float."""
    parts = [_field(1, name.encode()) for name in inputs]
    parts += [_field(2, name.encode()) for name in outputs]
    parts += [_field(3, outputs[0].encode()), _field(4, operator.encode())]
    parts += [_field(5, _write_attribute(name, value)) for name, value in attributes.items()]
    return b"".join(parts)


def write_tensor(name: str, values: npt.NDArray[Any], *, int4_shape: tuple[int, ...] | None = None) -> bytes:
    """Write a ``TensorProto`` with its data.

    Args:
        name: Its name.
        values: Its values; for INT4 bytes of two codes each.
        int4_shape: Shape of an INT4 tensor; None for others, whose type and shape are the array's.
    """
    dtype = INT4 if int4_shape else _TYPES[values.dtype.name]
    parts = [_number(1, size) for size in int4_shape or values.shape]
    parts += [_number(2, dtype), _field(8, name.encode()), _field(9, values.tobytes())]
    return b"".join(parts)


def write_value(name: str, dtype: int, shape: Sequence[int | str]) -> bytes:
    """Write a ``ValueInfoProto``: an input or output; a dimension is a number, or a name where it is dynamic."""
    dims = [_field(1, _number(1, size) if isinstance(size, int) else _field(2, size.encode())) for size in shape]
    tensor = _number(1, dtype) + _field(2, b"".join(dims))
    return _field(1, name.encode()) + _field(2, _field(1, tensor))


def write_model(
    nodes: Sequence[bytes], tensors: Sequence[bytes], inputs: Sequence[bytes], outputs: Sequence[bytes]
) -> bytes:
    """Write a ``ModelProto`` of what the other functions wrote."""
    parts: Mapping[int, Sequence[bytes]] = {1: nodes, 2: [b"graph"], 5: tensors, 11: inputs, 12: outputs}
    graph = b"".join(_field(number, part) for number, written in parts.items() for part in written)
    opset = _field(1, b"") + _number(2, OPSET)
    return _number(1, IR_VERSION) + _field(7, graph) + _field(8, opset)


def _write_attribute(name: str, value: float | int) -> bytes:
    if isinstance(value, int):
        return _field(1, name.encode()) + _number(3, value) + _number(20, _INT_ATTRIBUTE)
    number = _varint(2 << 3 | _FIXED32) + struct.pack("<f", value)
    return _field(1, name.encode()) + number + _number(20, _FLOAT_ATTRIBUTE)


def _field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value % 2**64)  # negative ones as their two's complement


def _varint(value: int) -> bytes:
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)
