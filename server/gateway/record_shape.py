"""What may be long in an answer: one kind of value, the coded bytes of an update. All else is words, and short.

Bytes are taken as they are, but a record of as many small entries takes a hundred times its length in memory, and
seconds to be read. So the lengths are looked at in the protobuf's own framing before anything is read.
"""

from collections.abc import Iterator
from typing import Final

from flwr.proto.recorddict_pb2 import ConfigRecord, ConfigRecordValue

_LENGTH_DELIMITED: Final = 2  # wire type, see protobuf.dev/programming-guides/encoding
_ITEM: Final = ConfigRecord.DESCRIPTOR.fields_by_name["items"].number
_VALUE: Final = ConfigRecord.Item.DESCRIPTOR.fields_by_name["value"].number
_BYTES: Final = ConfigRecordValue.DESCRIPTOR.fields_by_name["bytes"].number
_LONGEST_VARINT: Final = 10


def words_in(record: bytes, limit: int) -> int:
    """Bytes of a ConfigRecord that are not within a value of the kind `bytes`.

    Args:
        record: Its protobuf.
        limit: Where they are more, counting ends.

    Returns:
        How many, or more than `limit`.

    Raises:
        ValueError: It is malformed.
    """
    words = len(record)
    for count, (number, start, end) in enumerate(_fields(record, 0, len(record))):
        if 2 * count > limit:  # each takes two bytes at least
            return limit + 1
        if number == _ITEM:
            words -= _blob(record, start, end)
    return words


def _blob(record: bytes, start: int, end: int) -> int:
    """Length of an item's value, where that is bytes; else 0."""
    length = 0
    for number, first, last in _few(record, start, end):
        if number == _VALUE:
            values = list(_few(record, first, last))
            if len(values) == 1 and values[0][0] == _BYTES:
                length += values[0][2] - values[0][1]
    return length


def _few(record: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The fields of an item or a value; a second key or value is none of ours."""
    for count, field in enumerate(_fields(record, start, end)):
        if count > 1:
            raise ValueError("an item has one key and one value")
        yield field


def _fields(record: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Number, start and end of each length-delimited field; a record has no others."""
    while start < end:
        tag, start = _varint(record, start, end)
        if tag & 7 != _LENGTH_DELIMITED:
            return  # a number: it is short
        length, start = _varint(record, start, end)
        if start + length > end:
            raise ValueError("a field is longer than what holds it")
        yield tag >> 3, start, start + length
        start += length


def _varint(record: bytes, start: int, end: int) -> tuple[int, int]:
    value = 0
    for position in range(_LONGEST_VARINT):
        if start + position >= end:
            break
        byte = record[start + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, start + position + 1
    raise ValueError("a number does not end")
