"""What the server believes of a reply: nothing that it has not checked, and nothing is allocated before its size is."""

import base64
from dataclasses import dataclass
from typing import Any, Final

from flwr.app import Message

from fedglm.compression.codec import CodecError, Update, decode
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import SIGNATURE_BYTES, PublicKey
from fedglm.privacy.log.chained_file import Head
from fedglm.protocol.messages import RECORD, UPDATE, TrainReply, TrainRequest
from fedglm.protocol.signatures import check_train_reply
from fedglm.server.rounds.participants import error_text

_MEASURES: Final = {"loss": (0.0, 1e6), "metric": (0.0, 1e12), "count": (1, 2**40)}
"""Bounds of what a node may report: no honest loss, accuracy or perplexity comes near."""


@dataclass(frozen=True)
class GoodReply:
    """A reply that answers its instruction.

    Attributes:
        report: Its fields.
        update: Decoded update; None from a node that lacks the model.
        metrics: Measures of the received model (`loss`, `metric`, `count`), empty unless asked for.
        blob: The coded update; empty from a node that lacks the model.
    """

    report: TrainReply
    update: Update | None
    metrics: dict[str, float]
    blob: bytes = b""


def inspect_reply(
    reply: Message, instruction: TrainRequest, size: int, norm_limit: float, codec: str, key: PublicKey | None = None
) -> GoodReply:
    """Check a reply against the instruction it should answer.

    Args:
        reply: As it came.
        instruction: What the node was asked.
        size: Number of federated parameters.
        norm_limit: Greatest Euclidean norm of an update.
        codec: Name of the codec that the nodes were told to use.
        key: Of the site, which must have signed; None where sites do not sign.

    Raises:
        CodecError: Anything is wrong with it; the message says what.
    """
    if reply.has_error():
        raise CodecError(f"the node reports: {error_text(reply)}")
    content = reply.content
    if RECORD not in content.config_records:
        raise CodecError("the reply has no report")
    fields = dict(content.config_records[RECORD])
    blob = fields.pop(UPDATE, None)
    report = TrainReply.from_fields(fields)
    _check_anchor(report.log)
    _check_signature_form(report.signature)
    metrics = _metrics(content.metric_records) if instruction.evaluate and report.holds is None else {}
    if key is not None:
        _check_signature(key, fields, instruction, blob, metrics)
    if report.nonce != instruction.nonce:
        raise CodecError(f"the reply answers another message, not the one of round {instruction.round}")
    if report.holds is not None:
        return GoodReply(report, None, {})
    if not isinstance(blob, bytes):
        raise CodecError("the reply has no update")
    update = decode(blob, size=size, codec=codec)
    norm = update.norm()
    if not norm <= norm_limit:  # also true for NaN
        raise CodecError(f"the update's norm is {norm:g}, at most {norm_limit:g} is taken (federation.norm_limit)")
    return GoodReply(report, update, metrics, blob)


def _check_anchor(text: str | None) -> None:
    """Where a node says that its log stands is written down here, so it must look so."""
    try:
        if text is not None:
            Head.from_text(text)
    except PrivacyError as exc:
        raise CodecError(f"the node's report: {exc}") from exc


def _check_signature_form(text: str | None) -> None:
    """Where sites do not sign, nobody verifies what stands there; it is written down all the same."""
    try:
        if text is not None and len(base64.b64decode(text, validate=True)) != SIGNATURE_BYTES:
            raise ValueError("another length")
    except ValueError as exc:
        raise CodecError(f"the node's signature is none: {exc}") from exc


def _metrics(records: Any) -> dict[str, float]:
    record = records.get("metrics")
    if record is None or set(record) != {"loss", "metric", "count"}:
        raise CodecError("the node was asked for its metrics and sent none, or others")
    for name, (low, high) in _MEASURES.items():
        value = record[name]
        if not (isinstance(value, int | float) and low <= value <= high):  # a NaN is refused too
            raise CodecError(f"the node's {name} is no number from {low:g} to {high:g}")
    return dict(record)


def _check_signature(
    key: PublicKey, fields: dict[str, Any], instruction: TrainRequest, blob: object, metrics: dict[str, float]
) -> None:
    try:
        content = blob if isinstance(blob, bytes) else b""
        check_train_reply(key, fields, instruction.run, instruction.round, content, metrics)
    except PrivacyError as exc:
        raise CodecError(str(exc)) from exc
