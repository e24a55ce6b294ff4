"""Checks of untrusted replies: every field is checked, and sizes before anything is allocated."""

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
from fedglm.server.rounds.participants import read_error_text

_METRIC_BOUNDS: Final = {"loss": (0.0, 1e6), "metric": (0.0, 1e12), "count": (1, 2**40)}
"""Minimum and maximum of each metric: no honest loss, accuracy or perplexity comes near them."""


@dataclass(frozen=True)
class GoodReply:
    """A valid reply to a train request.

    Attributes:
        fields: Fields of the reply.
        update: Decoded update; None from a node that cannot rebuild the model.
        metrics: Metrics of the received model (`loss`, `metric`, `count`); empty unless requested.
        blob: Coded update; empty from a node that cannot rebuild the model.
    """

    fields: TrainReply
    update: Update | None
    metrics: dict[str, float]
    blob: bytes = b""


def check_reply(
    reply: Message, request: TrainRequest, size: int, norm_limit: float, codec: str, key: PublicKey | None = None
) -> GoodReply:
    """Check a reply against the request that it should answer.

    Args:
        reply: Untrusted reply, as received.
        request: Request that was sent to the node.
        size: Number of federated parameters.
        norm_limit: Maximum Euclidean norm of an update.
        codec: Name of the codec that the plan of the run prescribes.
        key: Public key of the site, which must have signed; None where sites do not sign.

    Raises:
        CodecError: The reply is invalid; the message gives the reason. Its cause is a PrivacyError where the signature
            is invalid or missing.
    """
    if reply.has_error():
        raise CodecError(f"the node reports: {read_error_text(reply)}")
    content = reply.content
    if RECORD not in content.config_records:
        raise CodecError("the reply has no report")
    values = dict(content.config_records[RECORD])
    blob = values.pop(UPDATE, None)
    fields = TrainReply.from_fields(values)
    _check_anchor(fields.log)
    _check_signature_form(fields.signature)
    metrics = _read_metrics(content.metric_records) if request.evaluate and fields.holds is None else {}
    if key is not None:
        _check_signature(key, values, request, blob, metrics)
    if fields.nonce != request.nonce:
        raise CodecError(f"the reply answers another message, not the one of round {request.round}")
    if fields.holds is not None:
        return GoodReply(fields, None, {})
    if not isinstance(blob, bytes):
        raise CodecError("the reply has no update")
    update = decode(blob, size=size, codec=codec)
    norm = update.norm()
    if not norm <= norm_limit:  # also true for NaN
        raise CodecError(f"the update's norm is {norm:g}, at most {norm_limit:g} is taken (federation.norm_limit)")
    return GoodReply(fields, update, metrics, blob)


def _check_anchor(text: str | None) -> None:
    """Check the form of the state that a node reports of its log: the server writes it down."""
    try:
        if text is not None:
            Head.from_text(text)
    except PrivacyError as exc:
        raise CodecError(f"the node's report: {exc}") from exc


def _check_signature_form(text: str | None) -> None:
    """Check the form of a signature: where sites do not sign, it is not verified, but written down all the same."""
    try:
        if text is not None and len(base64.b64decode(text, validate=True)) != SIGNATURE_BYTES:
            raise ValueError("another length")
    except ValueError as exc:
        raise CodecError(f"the node's signature is none: {exc}") from exc


def _read_metrics(records: Any) -> dict[str, float]:
    record = records.get("metrics")
    if record is None or set(record) != {"loss", "metric", "count"}:
        raise CodecError("the node was asked for its metrics and sent none, or others")
    for name, (low, high) in _METRIC_BOUNDS.items():
        value = record[name]
        if not (isinstance(value, int | float) and low <= value <= high):  # a NaN is refused too
            raise CodecError(f"the node's {name} is no number from {low:g} to {high:g}")
    return dict(record)


def _check_signature(
    key: PublicKey, values: dict[str, Any], request: TrainRequest, blob: object, metrics: dict[str, float]
) -> None:
    try:
        content = blob if isinstance(blob, bytes) else b""
        check_train_reply(key, values, request.run, request.round, content, metrics)
    except PrivacyError as exc:
        raise CodecError(str(exc)) from exc
