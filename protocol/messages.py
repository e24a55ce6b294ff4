"""The words around the coded bytes: what server and node say to each other in a round.

Each message is a flat mapping of a few short fields, so that it fits any transport; coded bytes lie in it as one field
more, for each further record would cost as much as all fields together. Both ends read the fields with `from_fields`,
which checks names, types and bounds and raises `MessageError`.

    server                                       node
      | -- (query) ------------------------------> |
      | <-- Introduction: name, version ---------- |
      | -- Instruction + downlink blob ----------> |   applies it, trains
      | <-- Report + update blob ----------------- |
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, Self, cast, get_args

from fedglm.compression.codec import CodecError

RECORD = "fedglm"
"""Name of the record that holds a message; in somebody's own Flower app, of the array that holds a coded update."""

PLAN = "plan"
"""Field of the server's first query that holds the signed plan of the run."""

MODEL = "model"
"""Field of a message to a node that holds coded bytes of the versioned downlink."""

UPDATE = "update"
"""Field of a node's answer that holds a coded update."""

UPDATE_STYPE = "fedglm.update/1"
"""Serialisation type of an array whose data are a coded update."""

LENGTHS = 20
"""Bytes that the lengths within a message grow by from an empty blob to the largest: five, from one byte to five."""

Field = bool | int | float | str


class MessageError(CodecError):
    """A message lacks a field, has a foreign one, or one is out of its bounds."""


class _Fields:
    """Conversion to and from a flat mapping of fields."""

    bounds: ClassVar[dict[str, tuple[int, int]]] = {
        "round": (1, 2**31),
        "version": (-1, 2**31),
        "holds": (-1, 2**31),
        "acknowledged": (0, 2**31),
        "examples": (0, 2**40),
    }

    def to_fields(self) -> dict[str, Field]:
        """All fields, but those that say nothing."""
        return {name: value for name, value in asdict(cast(Any, self)).items() if value is not None}

    @classmethod
    def from_fields(cls, mapping: Mapping[str, Any]) -> Self:
        """The message that these fields are; the optional ones may be missing."""
        kinds = {field.name: cast(type, field.type) for field in fields(cast(Any, cls))}
        optional = {name for name, kind in kinds.items() if type(None) in get_args(kind)}
        if not kinds.keys() - optional <= mapping.keys() <= kinds.keys():
            odd = sorted(str(name) for name in (mapping.keys() ^ kinds.keys()) - optional)
            raise MessageError(f"{cls.__name__}: missing or unknown fields: {', '.join(odd)[:200]}")
        for name, value in mapping.items():
            expected = get_args(kinds[name])[0] if name in optional else kinds[name]
            if type(value) is not expected:
                raise MessageError(f"{cls.__name__}.{name}: {expected.__name__} expected, got {type(value).__name__}")
            if isinstance(value, str) and (len(value) > 200 or not value.isprintable()):
                raise MessageError(f"{cls.__name__}.{name}: longer than 200 characters, or not printable")
            low, high = cls.bounds.get(name, (0, math.inf))
            if isinstance(value, int | float) and not low <= value < high:  # a NaN is refused too
                raise MessageError(f"{cls.__name__}.{name}: out of range, from {low} to below {high} expected")
        return cls(**mapping)


@dataclass(frozen=True, kw_only=True)
class TrainRequest(_Fields):
    """What a node is to do in a round.

    Attributes:
        run: Identity of the run; a node drops its state of another run.
        round: Number of the round, from 1.
        nonce: Fresh for each node and round; the reply repeats it.
        layout: SHA-256 (hex) of the model's layout.
        version: Version of the model that the node holds once it has applied the downlink blob.
        acknowledged: The last round whose update the server folded in from this node, 0 for none.
        learning_rate: Local learning rate of this round.
        evaluate: Measure the received model on the node's held-out data and report it.
        anchor: Where the node's log stood in its last report; left out where it reported none.
    """

    run: str
    round: int
    nonce: str
    layout: str
    version: int
    acknowledged: int
    learning_rate: float
    evaluate: bool
    anchor: str | None = None


@dataclass(frozen=True, kw_only=True)
class TrainReply(_Fields):
    """A node's answer to an instruction; a coded update comes beside it.

    The nonce says all that the server must know: which instruction this answers, and with it round and version.

    Attributes:
        nonce: The instruction's.
        holds: Said only by a node that cannot rebuild the model from what it has and what came, and then nothing else:
            the version that it holds, -1 for none. The server sends what leads from there, or a snapshot.
        log: Where the node's log stands, and with it its privacy ledger; for the server to give back, so that an old
            copy is noticed.
        signature: Of the site, where sites sign.
    """

    nonce: str
    holds: int | None = None
    log: str | None = None
    signature: str | None = None


@dataclass(frozen=True, kw_only=True)
class JoinReply(_Fields):
    """A node's answer to the query at the start of a run.

    Attributes:
        name: The node's name, unique in the federation.
        run: Run that the node's state belongs to; empty for none.
        version: Version of the model that the node holds; -1 for none.
        layout: SHA-256 (hex) of the model layout that the node builds.
        examples: Number of training examples that the node declares as its public weight; 0 declares none.
        signature: Of the site, where sites sign.
    """

    name: str
    run: str
    version: int
    layout: str
    examples: int
    signature: str | None = None


@dataclass(frozen=True, kw_only=True)
class Seal(_Fields):
    """How the server's log stands, signed; and the site's own last checkpoint, countersigned.

    See `fedglm.privacy.log.tree_head` for what the fields hold.
    """

    run: str
    log: str
    size: int
    root: str
    made: str
    signature: str
    your_size: int | None = None
    your_root: str | None = None
    your_made: str | None = None
    your_signature: str | None = None
    your_countersignature: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sealed(_Fields):
    """A node's answer to a `Seal`: how its own log stands, signed, and its countersignature under the server's.

    Attributes:
        key: Of the site (hex), by which it signs.
        countersignature: Under the checkpoint in the `Seal`.
    """

    log: str
    size: int
    root: str
    made: str
    signature: str
    key: str
    countersignature: str


@dataclass(frozen=True, kw_only=True)
class ModRequest(_Fields):
    """What `Compressed` adds to the message of somebody's own Flower strategy, for the node's `compress_uplink`.

    Attributes:
        run: Identity of the run; a node drops its state of another run.
        round: Number of the round, from 1.
        acknowledged: The last round whose update the server folded in from this node, 0 for none.
    """

    run: str
    round: int
    acknowledged: int
