"""Signatures of a site under its replies, so that nobody between its outbound gate and the server can change them.

TLS and Flower's node authentication protect each hop; the broker between the hops still has the bytes. A signature
covers the fields, the SHA-256 of the coded update, the metrics, and the run and round of the request, so that an update
is valid in no other place.
"""

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import SIGNATURE_BYTES, PublicKey, SigningKey

SIGNATURE = "signature"
"""Field of a message that holds the signature, which is over all others."""

_JOIN_REPLY = "fedglm/introduction/1"
_TRAIN_REPLY = "fedglm/report/1"
_LIGHT_REPLY = "fedglm/light-reply/1"
_MODEL_REPLY = "fedglm/model-reply/1"


def sign_join_reply(key: SigningKey, fields: Mapping[str, Any], plan: str) -> str:
    """Sign a `JoinReply`.

    Args:
        key: Key of the site.
        fields: Fields of the reply.
        plan: SHA-256 (hex) of the run's plan, so that the signature is valid for this run's query alone.

    Returns:
        The signature in base64.
    """
    return _to_base64(key.sign(_JOIN_REPLY, _join_content(fields, plan)))


def check_join_reply(key: PublicKey, fields: Mapping[str, Any], plan: str) -> None:
    """Verify the signature of `sign_join_reply`, which is one of the fields.

    Raises:
        PrivacyError: The signature is missing, or is not this site's under these fields.
    """
    _check_signature(key, _JOIN_REPLY, _join_content(fields, plan), fields)


def sign_light_reply(key: SigningKey, fields: Mapping[str, Any], plan: str) -> str:
    """Sign a `LightReply`; as `sign_join_reply`."""
    return _to_base64(key.sign(_LIGHT_REPLY, _join_content(fields, plan)))


def check_light_reply(key: PublicKey, fields: Mapping[str, Any], plan: str) -> None:
    """Verify the signature of `sign_light_reply`, which is one of the fields.

    Raises:
        PrivacyError: The signature is missing, or is not this site's under these fields.
    """
    _check_signature(key, _LIGHT_REPLY, _join_content(fields, plan), fields)


def sign_model_reply(key: SigningKey, fields: Mapping[str, Any], plan: str) -> str:
    """Sign a `ModelReply`; as `sign_join_reply`."""
    return _to_base64(key.sign(_MODEL_REPLY, _join_content(fields, plan)))


def check_model_reply(key: PublicKey, fields: Mapping[str, Any], plan: str) -> None:
    """Verify the signature of `sign_model_reply`, which is one of the fields.

    Raises:
        PrivacyError: The signature is missing, or is not this site's under these fields.
    """
    _check_signature(key, _MODEL_REPLY, _join_content(fields, plan), fields)


def sign_train_reply(
    key: SigningKey, fields: Mapping[str, Any], run: str, server_round: int, blob: bytes, metrics: Mapping[str, Any]
) -> str:
    """Sign a `TrainReply` with all that travels beside it.

    Args:
        key: Key of the site.
        fields: Fields of the reply.
        run: Identity of the run.
        server_round: Number of the round.
        blob: The coded update; empty for none.
        metrics: Metrics beside it; empty for none.

    Returns:
        The signature in base64.
    """
    return _to_base64(key.sign(_TRAIN_REPLY, _train_content(fields, run, server_round, blob, metrics)))


def check_train_reply(
    key: PublicKey, fields: Mapping[str, Any], run: str, server_round: int, blob: bytes, metrics: Mapping[str, Any]
) -> None:
    """Verify the signature of `sign_train_reply`, which is one of the fields.

    Raises:
        PrivacyError: The signature is missing, or is not this site's under this reply.
    """
    _check_signature(key, _TRAIN_REPLY, _train_content(fields, run, server_round, blob, metrics), fields)


def is_signed_reply(
    key: PublicKey,
    *,
    run: str,
    server_round: int,
    nonce: str,
    log: str | None,
    release: str,
    metrics: Mapping[str, Any],
    signature: bytes,
) -> bool:
    """Return whether a site signed a train reply, from the fields and the update's SHA-256 (hex) that a log kept.

    Args:
        key: Public key of the site.
        run: Identity of the run.
        server_round: Number of the round.
        nonce: Nonce of the reply.
        log: State of the node's log in the reply, or None.
        release: SHA-256 (hex) of the coded update.
        metrics: Metrics beside it.
        signature: The signature, as bytes.
    """
    content = _signed_content({"nonce": nonce, "log": log}, run, server_round, release, metrics)
    return key.verify(_TRAIN_REPLY, content, signature)


def _join_content(fields: Mapping[str, Any], plan: str) -> bytes:
    return canonical_json({**_drop_signature(fields), "plan": plan})


def _train_content(
    fields: Mapping[str, Any], run: str, server_round: int, blob: bytes, metrics: Mapping[str, Any]
) -> bytes:
    return _signed_content(fields, run, server_round, hashlib.sha256(blob).hexdigest(), metrics)


def _signed_content(
    fields: Mapping[str, Any], run: str, server_round: int, update: str, metrics: Mapping[str, Any]
) -> bytes:
    context = {"run": run, "round": server_round, "update": update, "metrics": dict(metrics)}
    return canonical_json({**_drop_signature(fields), **context})


def _drop_signature(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != SIGNATURE and value is not None}


def _to_base64(signature: bytes) -> str:
    return base64.b64encode(signature).decode()


def _check_signature(key: PublicKey, context: str, content: bytes, fields: Mapping[str, Any]) -> None:
    try:
        signature = base64.b64decode(str(fields.get(SIGNATURE) or ""), validate=True)
    except (ValueError, binascii.Error):
        signature = b""
    if len(signature) != SIGNATURE_BYTES or not key.verify(context, content, signature):
        raise PrivacyError(f"the message is not signed by the site's key {key.fingerprint()}")
