"""The words around the coded bytes: what server and node say to each other in a round.

Each message is a flat mapping of a few short fields, so that it fits any transport (Flower's `ConfigRecord`, JSON).
Both ends read a mapping with `from_fields`, which checks names, types and bounds and raises `MessageError`.

    server                                       node
      | -- (query) ------------------------------> |
      | <-- Introduction: name, version ---------- |
      | -- Instruction + downlink blob ----------> |   applies it, trains
      | <-- Report + update blob ----------------- |
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Literal, Self, cast, get_args

from fedglm.compression.codec import CodecError

RECORD = "fedglm"
"""Name of the record that holds a message's fields, and of the one that holds its coded bytes."""

UPDATE_STYPE = "fedglm.update/1"
"""Serialisation type of an array whose data are a coded update."""

DOWNLINK_STYPE = "fedglm.downlink/1"
"""Serialisation type of an array whose data are a message of the versioned downlink."""

LENGTHS = 24
"""Bytes that the lengths within a message grow by from an empty blob to the largest: four, of five bytes each."""

Field = bool | int | float | str


class MessageError(CodecError):
    """A message lacks a field, has a foreign one, or one is out of its bounds."""


class _Fields:
    """Conversion to and from a flat mapping of fields."""

    bounds: ClassVar[dict[str, tuple[int, int]]] = {
        "round": (1, 2**31),
        "version": (-1, 2**31),
        "acknowledged": (0, 2**31),
        "examples": (0, 2**40),
    }

    def to_fields(self) -> dict[str, Field]:
        return asdict(cast(Any, self))

    @classmethod
    def from_fields(cls, mapping: Mapping[str, Any]) -> Self:
        kinds = {field.name: field.type for field in fields(cast(Any, cls))}
        if mapping.keys() != kinds.keys():
            odd = sorted(str(name) for name in mapping.keys() ^ kinds.keys())
            raise MessageError(f"{cls.__name__}: missing or unknown fields: {', '.join(odd)[:200]}")
        for name, kind in kinds.items():
            value = mapping[name]
            expected = kind if isinstance(kind, type) else str
            if type(value) is not expected:
                raise MessageError(f"{cls.__name__}.{name}: {expected.__name__} expected, got {type(value).__name__}")
            if get_args(kind) and value not in get_args(kind):
                raise MessageError(f"{cls.__name__}.{name}: one of {', '.join(get_args(kind))} expected")
            if isinstance(value, str) and len(value) > 200:
                raise MessageError(f"{cls.__name__}.{name}: longer than 200 characters")
            low, high = cls.bounds.get(name, (0, math.inf))
            if isinstance(value, int | float) and not low <= value < high:  # a NaN is refused too
                raise MessageError(f"{cls.__name__}.{name}: out of range, from {low} to below {high} expected")
        return cls(**mapping)


@dataclass(frozen=True, kw_only=True)
class Instruction(_Fields):
    """What a node is to do in a round.

    Attributes:
        run: Identity of the run; a node drops its state of another run.
        round: Number of the round, from 1.
        nonce: Fresh for each message; the reply repeats it.
        layout: SHA-256 (hex) of the model's layout.
        version: Version of the model that the node holds once it has applied the downlink blob.
        acknowledged: The last round whose update the server folded in from this node, 0 for none.
        learning_rate: Local learning rate of this round.
        evaluate: Measure the received model on the node's held-out data and report it.
    """

    run: str
    round: int
    nonce: str
    layout: str
    version: int
    acknowledged: int
    learning_rate: float
    evaluate: bool


@dataclass(frozen=True, kw_only=True)
class Report(_Fields):
    """A node's answer to an instruction.

    Attributes:
        nonce: The instruction's.
        round: The instruction's.
        version: Version of the model that the node holds now; -1 for none. With `need-snapshot` the server tries
            deltas from there first, where it thought the node elsewhere.
        status: `update` (coded bytes follow), `evaluated` (nothing but metrics), or `need-snapshot`: the node cannot
            rebuild the model from what it holds and what came.
    """

    nonce: str
    round: int
    version: int
    status: Literal["update", "evaluated", "need-snapshot"]


@dataclass(frozen=True, kw_only=True)
class Introduction(_Fields):
    """A node's answer to the query at the start of a run.

    Attributes:
        name: The node's name, unique in the federation.
        run: Run that the node's state belongs to; empty for none.
        version: Version of the model that the node holds; -1 for none.
        layout: SHA-256 (hex) of the model layout that the node builds.
        examples: Number of training examples that the node declares as its public weight; 0 declares none.
    """

    name: str
    run: str
    version: int
    layout: str
    examples: int


@dataclass(frozen=True, kw_only=True)
class Order(_Fields):
    """What `Compressed` adds to the message of somebody's own Flower strategy, for the node's `compress_uplink`.

    Attributes:
        run: Identity of the run; a node drops its state of another run.
        round: Number of the round, from 1.
        acknowledged: The last round whose update the server folded in from this node, 0 for none.
    """

    run: str
    round: int
    acknowledged: int
