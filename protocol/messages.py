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

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Self, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

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

Value = bool | int | float | str
"""What a field may hold."""

_MAX_TEXT = 200
_STRICT = ConfigDict(extra="forbid", strict=True)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("string_not_printable", "printable characters expected")
    return text


def _no_whole_number(value: object) -> object:
    if type(value) is int:  # which pydantic takes for a float even where it is strict
        raise PydanticCustomError("float_type", "a float expected")
    return value


Text = Annotated[str, Field(max_length=_MAX_TEXT), AfterValidator(_printable)]
Round = Annotated[int, Field(ge=1, lt=2**31)]
Acknowledged = Annotated[int, Field(ge=0, lt=2**31)]
Version = Annotated[int, Field(ge=-1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**40)]
Size = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_no_whole_number)]


class MessageError(CodecError):
    """A message lacks a field, has a foreign one, or one is out of its bounds."""


class _Fields:
    """Conversion to and from a flat mapping of fields."""

    def to_fields(self) -> dict[str, Value]:
        """All fields, but those that say nothing."""
        return {name: value for name, value in dataclasses.asdict(cast(Any, self)).items() if value is not None}

    @classmethod
    def from_fields(cls, mapping: Mapping[str, Any]) -> Self:
        """The message that these fields are; the optional ones may be missing.

        Raises:
            MessageError: A field is missing, unknown, of another type or out of its bounds; the message names it.
        """
        if silent := [str(name) for name, value in mapping.items() if value is None]:
            raise MessageError(f"{cls.__name__}: fields that say nothing are left out: {', '.join(silent)[:_MAX_TEXT]}")
        try:
            return cls(**{str(name): value for name, value in mapping.items()})
        except ValidationError as exc:
            raise MessageError(_explain(cls.__name__, exc)) from exc


_TYPES = {"string_type": "str", "int_type": "int", "float_type": "float", "bool_type": "bool"}
_TEXTS = ("string_too_long", "string_not_printable")


def _explain(kind: str, error: ValidationError) -> str:
    """One short line, whatever a stranger sent."""
    faults = error.errors(include_url=False)
    if odd := [str(fault["loc"][0]) for fault in faults if fault["type"] in ("missing", "unexpected_keyword_argument")]:
        return f"{kind}: missing or unknown fields: {', '.join(sorted(odd))[:_MAX_TEXT]}"
    return f"{kind}.{faults[0]['loc'][0]}: {_reason(faults[0])}"


def _reason(fault: ErrorDetails) -> str:
    if fault["type"] in _TYPES:
        return f"{_TYPES[fault['type']]} expected, got {type(fault['input']).__name__}"
    if fault["type"] in _TEXTS:
        return f"longer than {_MAX_TEXT} characters, or not printable"
    return f"out of range: {fault['msg'].lower()}"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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

    run: Text
    round: Round
    nonce: Text
    layout: Text
    version: Version
    acknowledged: Acknowledged
    learning_rate: Rate
    evaluate: bool
    anchor: Text | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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

    nonce: Text
    holds: Version | None = None
    log: Text | None = None
    signature: Text | None = None


@dataclasses.dataclass(frozen=True)
class CodedReply:
    """A `TrainReply` and all that travels beside it.

    Attributes:
        reply: The fields.
        blob: A coded update, or None.
        metrics: Measures of the received model by name, or None.
    """

    reply: TrainReply
    blob: bytes | None = None
    metrics: Mapping[str, int | float] | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
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

    name: Text
    run: Text
    version: Version
    layout: Text
    examples: Count
    signature: Text | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Seal(_Fields):
    """How the server's log stands, signed; and the site's own last checkpoint, countersigned.

    See `fedglm.privacy.log.tree_head` for what the fields hold.
    """

    run: Text
    log: Text
    size: Size
    root: Text
    made: Text
    signature: Text
    your_size: Size | None = None
    your_root: Text | None = None
    your_made: Text | None = None
    your_signature: Text | None = None
    your_countersignature: Text | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Sealed(_Fields):
    """A node's answer to a `Seal`: how its own log stands, signed, and its countersignature under the server's.

    Attributes:
        key: Of the site (hex), by which it signs.
        countersignature: Under the checkpoint in the `Seal`.
    """

    log: Text
    size: Size
    root: Text
    made: Text
    signature: Text
    key: Text
    countersignature: Text


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModRequest(_Fields):
    """What `Compressed` adds to the message of somebody's own Flower strategy, for the node's `compress_uplink`.

    Attributes:
        run: Identity of the run; a node drops its state of another run.
        round: Number of the round, from 1.
        acknowledged: The last round whose update the server folded in from this node, 0 for none.
    """

    run: Text
    round: Round
    acknowledged: Acknowledged
