"""Size of a serialized ConfigRecord beside its values of type `bytes`, which hold the coded update.

A `bytes` value is read as it is, but a record of many small entries takes a hundred times its length in memory, and
seconds to parse. The sizes are therefore taken from the protobuf wire format before anything is parsed.
"""

from collections.abc import Iterator
from typing import Final

from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue

_LENGTH_DELIMITED: Final = 2  # wire type, see protobuf.dev/programming-guides/encoding
_ITEMS_FIELD: Final = ConfigRecord.DESCRIPTOR.fields_by_name["items"].number
_VALUE_FIELD: Final = ConfigRecord.Item.DESCRIPTOR.fields_by_name["value"].number
_BYTES_FIELD: Final = ConfigRecordValue.DESCRIPTOR.fields_by_name["bytes"].number
_MAX_VARINT_BYTES: Final = 10


def count_metadata_bytes(record: bytes, limit: int) -> int:
    """Count the bytes of a ConfigRecord outside its values of type `bytes`.

    Args:
        record: Serialized ConfigRecord.
        limit: Limit beyond which counting may stop.

    Returns:
        Number of bytes; any number above `limit` where there are more.

    Raises:
        ValueError: The record is malformed.
    """
    metadata = len(record)
    for count, (number, start, end) in enumerate(_read_fields(record, 0, len(record))):
        if 2 * count > limit:  # each field takes two bytes at least
            return limit + 1
        if number == _ITEMS_FIELD:
            metadata -= _measure_bytes_value(record, start, end)
    return metadata


def _measure_bytes_value(record: bytes, start: int, end: int) -> int:
    """Return the length of an item's value if its type is `bytes`; else 0."""
    length = 0
    for number, value_start, value_end in _read_pair(record, start, end):
        if number == _VALUE_FIELD:
            values = list(_read_pair(record, value_start, value_end))
            if len(values) == 1 and values[0][0] == _BYTES_FIELD:
                length += values[0][2] - values[0][1]
    return length


def _read_pair(record: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the fields of an item or a value; more than two are malformed."""
    for count, field in enumerate(_read_fields(record, start, end)):
        if count > 1:
            raise ValueError("an item has one key and one value")
        yield field


def _read_fields(record: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of each length-delimited field; a record has no others."""
    while start < end:
        tag, start = _read_varint(record, start, end)
        if tag & 7 != _LENGTH_DELIMITED:
            return  # a number: it is short
        length, start = _read_varint(record, start, end)
        if start + length > end:
            raise ValueError("a field is longer than what holds it")
        yield tag >> 3, start, start + length
        start += length


def _read_varint(record: bytes, start: int, end: int) -> tuple[int, int]:
    """Return a varint at `start`, and the position after it."""
    value = 0
    for position in range(_MAX_VARINT_BYTES):
        if start + position >= end:
            break
        byte = record[start + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, start + position + 1
    raise ValueError("a number does not end")
