"""The messages between server and node in a round: the fields around the coded bytes.

Each message is a flat mapping of a few short fields, so that it fits any transport; coded bytes are one more field in
it, because each further record would cost as much as all fields together. Both ends parse the fields with
`from_fields`, which checks names, types and bounds and raises `MessageError`.

    server                                       node
      | -- (query) ------------------------------> |
      | <-- JoinReply: name, version ------------- |
      | -- TrainRequest + downlink message ------> |   applies it, trains
      | <-- TrainReply + update blob ------------- |
      | -- LightOffer (+ light release) ---------> |   verifies it, checks it, keeps it
      | <-- LightReply: what it holds now -------- |
      | -- ModelOffer + downlink message --------> |   rebuilds the final model, keeps it
      | <-- ModelReply: the model that it holds -- |
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Self, cast

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import ErrorDetails, PydanticCustomError

from fedglm.compression.codec import CodecError
from fedglm.protocol.model_manifest import MAX_MANIFEST

RECORD = "fedglm"
"""Name of the record that holds a message; in a Flower app with our mods, name of the array with a coded update."""

PLAN = "plan"
"""Field of the server's first query that holds the signed plan of the run."""

MODEL = "model"
"""Field of a message to a node that holds a message of the versioned downlink."""

UPDATE = "update"
"""Field of a node's reply that holds a coded update."""

RELEASE = "release"
"""Field of a `LightOffer` that holds a light release, whole or as a delta."""

MAX_RELEASE_BYTES = 128 * 2**20
"""Maximum size of a light release in a message, half of what a node takes of a whole message."""

UPDATE_STYPE = "fedglm.update/1"
"""Serialisation type of an array whose data are a coded update."""

LENGTHS = 20
"""Bytes by which the length fields of a message grow from an empty blob to the largest: five, from one byte to five."""

Value = bool | int | float | str
"""Type of a field."""

_MAX_TEXT = 200
MAX_VALIDATION = 8192
"""Maximum characters of a signed validation in a message; this version's has at most 7,800.

Six checks, of 440 characters that JSON may write by two each, and 40 around them: 6 x 920. Processor and system, of
200 each, with the rest of the device: 1,200. Times, memory and power: 540. Hashes, keys and the signature: 500. As
UTF-8 the field has 32 KiB at most, half of what the server takes of a reply without an update.
"""
_STRICT = ConfigDict(extra="forbid", strict=True)


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("string_not_printable", "printable characters expected")
    return text


def _refuse_int(value: object) -> object:
    if type(value) is int:  # which pydantic accepts as a float even in strict mode
        raise PydanticCustomError("float_type", "a float expected")
    return value


Text = Annotated[str, Field(max_length=_MAX_TEXT), AfterValidator(_check_printable)]
Round = Annotated[int, Field(ge=1, lt=2**31)]
Acknowledged = Annotated[int, Field(ge=0, lt=2**31)]
Version = Annotated[int, Field(ge=-1, lt=2**31)]
Count = Annotated[int, Field(ge=0, lt=2**40)]
Size = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_refuse_int)]


class MessageError(CodecError):
    """A message has a missing, unknown or out-of-range field."""


class _Fields:
    """Conversion to and from a flat mapping of fields."""

    def to_fields(self) -> dict[str, Value]:
        """Return all fields that are not None."""
        return {name: value for name, value in dataclasses.asdict(cast(Any, self)).items() if value is not None}

    @classmethod
    def from_fields(cls, mapping: Mapping[str, Any]) -> Self:
        """Parse the message from untrusted fields; the optional ones may be missing.

        Raises:
            MessageError: A field is missing, unknown, of another type or out of range; the message names it.
        """
        if empty := [str(name) for name, value in mapping.items() if value is None]:
            raise MessageError(f"{cls.__name__}: fields that say nothing are left out: {', '.join(empty)[:_MAX_TEXT]}")
        try:
            return cls(**{str(name): value for name, value in mapping.items()})
        except ValidationError as exc:
            raise MessageError(_describe_errors(cls.__name__, exc)) from exc


_TYPES = {"string_type": "str", "int_type": "int", "float_type": "float", "bool_type": "bool"}
_TEXTS = ("string_too_long", "string_not_printable")


def _describe_errors(kind: str, error: ValidationError) -> str:
    """Return one short line, whatever was sent."""
    faults = error.errors(include_url=False)
    wrong_names = ("missing", "unexpected_keyword_argument")
    if names := [str(fault["loc"][0]) for fault in faults if fault["type"] in wrong_names]:
        return f"{kind}: missing or unknown fields: {', '.join(sorted(names))[:_MAX_TEXT]}"
    return f"{kind}.{faults[0]['loc'][0]}: {_describe_error(faults[0])}"


def _describe_error(fault: ErrorDetails) -> str:
    if fault["type"] in _TYPES:
        return f"{_TYPES[fault['type']]} expected, got {type(fault['input']).__name__}"
    if fault["type"] in _TEXTS:
        limit = fault.get("ctx", {}).get("max_length", _MAX_TEXT)
        return f"longer than {limit} characters, or not printable"
    return f"out of range: {fault['msg'].lower()}"


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TrainRequest(_Fields):
    """The server's request to train in a round.

    Attributes:
        run: Identity of the run; a node drops its state of another run.
        round: Number of the round, from 1.
        nonce: Fresh text for each node and round; the reply repeats it.
        layout: SHA-256 (hex) of the model's layout.
        version: Version of the model that the node holds once it has applied the downlink message.
        acknowledged: The last round whose update from this node the server aggregated, 0 for none.
        learning_rate: Local learning rate of this round.
        evaluate: Whether to measure the received model on the node's held-out data and report the result.
        anchor: State of the node's log in its last reply; None where that had none.
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
    """A node's reply to a `TrainRequest`; a coded update travels beside it.

    The nonce identifies the request that this answers, and with it round and version.

    Attributes:
        nonce: Nonce of the request.
        holds: Version that the node holds, -1 for none. Only a node that cannot rebuild the model from its version and
            the request sends it, and then no update. The server sends the deltas from there, or a snapshot.
        log: State of the node's log, and with it of its privacy ledger. The server returns it in its next request, so
            that the node notices when its files are replaced by an old copy.
        signature: Signature of the site, where sites sign.
    """

    nonce: Text
    holds: Version | None = None
    log: Text | None = None
    signature: Text | None = None


@dataclasses.dataclass(frozen=True)
class CodedReply:
    """A `TrainReply` with the update and the metrics beside it.

    Attributes:
        reply: The fields.
        blob: Coded update, or None.
        metrics: Metrics of the received model by name, or None.
    """

    reply: TrainReply
    blob: bytes | None = None
    metrics: Mapping[str, int | float] | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class JoinReply(_Fields):
    """A node's reply to the query at the start of a run.

    Attributes:
        name: Name of the node, unique in the federation.
        run: Run that the node's state belongs to; empty for none.
        version: Version of the model that the node holds; -1 for none.
        layout: SHA-256 (hex) of the model layout that the node builds.
        examples: Number of training examples that the node declares as its public weight; 0 declares none.
        signature: Signature of the site, where sites sign.
    """

    name: Text
    run: Text
    version: Version
    layout: Text
    examples: Count
    signature: Text | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LightOffer(_Fields):
    """The server's offer of a light release of the model; without the release beside it, only a question.

    The release is signed by itself; these fields only say how it comes.

    Attributes:
        run: Identity of the run.
        base: SHA-256 (hex) of the manifest of the release that the delta beside it was made from; None where the
            release beside it is whole, or there is none.
    """

    run: Text
    base: Text | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class LightReply(_Fields):
    """A node's reply to a `LightOffer`.

    Attributes:
        version: Number of the light release that the node holds now; -1 for none.
        manifest: SHA-256 (hex) of its manifest; empty for none.
        fault: Why the offered release was not taken; None where it was, or none was offered.
        unfit: Whether it is that the release is genuine and does not work here, so that it need not come again.
        validation: How the offered release works on this node, or else the one that it holds, as the site signed it
            (`inference.validation.validation`); None where the site's policy does not permit to say so.
        signature: Signature of the site, where sites sign.
    """

    version: Version
    manifest: Text
    fault: Text | None = None
    unfit: bool | None = None
    validation: Annotated[str, Field(max_length=MAX_VALIDATION), AfterValidator(_check_printable)] | None = None
    signature: Text | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelOffer(_Fields):
    """The server's offer of the model that the run ends with; a message of the versioned downlink travels beside it.

    Attributes:
        run: Identity of the run.
        manifest: The signed manifest (`protocol.model_manifest`).
    """

    run: Text
    manifest: Annotated[str, Field(max_length=MAX_MANIFEST), AfterValidator(_check_printable)]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelReply(_Fields):
    """A node's reply to a `ModelOffer`.

    Attributes:
        model: SHA-256 (hex) of the model that the node holds now; empty where it does not hold the offered one.
        holds: Version that the node holds, -1 for none, where it cannot rebuild the model from what came.
        fault: Why it does not keep the model; None where it does, or only lacks deltas.
        signature: Signature of the site, where sites sign.
    """

    model: Text
    holds: Version | None = None
    fault: Text | None = None
    signature: Text | None = None


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class Seal(_Fields):
    """The server's signed tree head, and the site's last signed tree head with the server's countersignature.

    The fields are those of `fedglm.privacy.log.tree_head`.
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
    """A node's reply to a `Seal`: its own signed tree head, and its countersignature under the server's.

    Attributes:
        key: Public key of the site (hex).
        countersignature: Signature of the site under the tree head in the `Seal`.
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
    """Fields that `Compressed` adds to the message of a user's Flower strategy, for the node's `compress_uplink`.

    Attributes:
        run: Identity of the run; a node drops its state of another run.
        round: Number of the round, from 1.
        acknowledged: The last round whose update from this node the server aggregated, 0 for none.
    """

    run: Text
    round: Round
    acknowledged: Acknowledged
