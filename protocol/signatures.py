"""Signatures of a site under what it sends, so that whoever stands between its gate and the server can change nothing.

TLS and Flower's node authentication protect each hop; the broker between the hops still holds the bytes. A signature
covers the words, the SHA-256 of the coded update, the metrics, and which run and round they answer, so that an update
counts in no other place.
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

_INTRODUCTION = "fedglm/introduction/1"
_REPORT = "fedglm/report/1"


def sign_introduction(key: SigningKey, fields: Mapping[str, Any], plan: str) -> str:
    """The signature under a node's introduction.

    Args:
        key: The site's.
        fields: Of the introduction.
        plan: SHA-256 (hex) of the run's plan, which answers nothing but this run's query.
    """
    return _text(key.sign(_INTRODUCTION, _introduction(fields, plan)))


def check_introduction(key: PublicKey, fields: Mapping[str, Any], plan: str) -> None:
    """Verify what `sign_introduction` made, in the fields themselves.

    Raises:
        PrivacyError: The signature is missing, or is not this site's under these words.
    """
    _check(key, _INTRODUCTION, _introduction(fields, plan), fields)


def sign_report(
    key: SigningKey, fields: Mapping[str, Any], run: str, server_round: int, blob: bytes, metrics: Mapping[str, Any]
) -> str:
    """The signature under a node's answer.

    Args:
        key: The site's.
        fields: Of the report.
        run: Identity of the run.
        server_round: Number of the round.
        blob: The coded update; empty for none.
        metrics: Measures beside it; empty for none.
    """
    return _text(key.sign(_REPORT, _report(fields, run, server_round, blob, metrics)))


def check_report(
    key: PublicKey, fields: Mapping[str, Any], run: str, server_round: int, blob: bytes, metrics: Mapping[str, Any]
) -> None:
    """Verify what `sign_report` made, in the fields themselves.

    Raises:
        PrivacyError: The signature is missing, or is not this site's under this answer.
    """
    _check(key, _REPORT, _report(fields, run, server_round, blob, metrics), fields)


def is_reported(
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
    """Whether a site signed an answer, of which a log kept the words and the SHA-256 (hex) of the coded update."""
    return key.verify(_REPORT, _words({"nonce": nonce, "log": log}, run, server_round, release, metrics), signature)


def _introduction(fields: Mapping[str, Any], plan: str) -> bytes:
    return canonical_json({**_unsigned(fields), "plan": plan})


def _report(fields: Mapping[str, Any], run: str, server_round: int, blob: bytes, metrics: Mapping[str, Any]) -> bytes:
    return _words(fields, run, server_round, hashlib.sha256(blob).hexdigest(), metrics)


def _words(fields: Mapping[str, Any], run: str, server_round: int, update: str, metrics: Mapping[str, Any]) -> bytes:
    whole = {"run": run, "round": server_round, "update": update, "metrics": dict(metrics)}
    return canonical_json({**_unsigned(fields), **whole})


def _unsigned(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name != SIGNATURE and value is not None}


def _text(signature: bytes) -> str:
    return base64.b64encode(signature).decode()


def _check(key: PublicKey, context: str, content: bytes, fields: Mapping[str, Any]) -> None:
    try:
        signature = base64.b64decode(str(fields.get(SIGNATURE) or ""), validate=True)
    except (ValueError, binascii.Error):
        signature = b""
    if len(signature) != SIGNATURE_BYTES or not key.verify(context, content, signature):
        raise PrivacyError(f"the message is not signed by the site's key {key.fingerprint()}")
