"""Signed tree heads of a log: its owner signs its size and Merkle root, and the other side countersigns them.

An owner can rewrite its own log and sign it anew. What it cannot change is the tree head that the other side has
countersigned, and keeps in a log of its own: a log whose first entries do not give the countersigned root was
rewritten, truncated or forked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey, SigningKey
from fedglm.privacy.log.entries import KINDS

FIELDS: Final = ("size", "root", "made", "signature")
"""Fields of a tree head without its log, as in tables, entries, messages and proofs."""

MAX_WITNESSED_HEADS: Final = 1000
"""Maximum number of tree heads of one run's server that a site keeps: without it a server could fill its disk."""

_OWN, _OTHER, _KEY = "fedglm/checkpoint/1", "fedglm/witness/1", "fedglm/key/1"


@dataclass(frozen=True)
class SignedTreeHead:
    """The state of a log at some time, signed by its owner (RFC 6962, section 3.5).

    Attributes:
        log: Origin of the log's hash chain (hex), which identifies the log.
        size: Number of entries.
        root: Root of the Merkle tree over the entries (hex).
        made: Time of the signature: UTC, ISO 8601 to the second.
        signature: Signature of the owner (hex).
    """

    log: str
    size: int
    root: str
    made: str
    signature: str

    @classmethod
    def sign(cls, log: str, size: int, root: str, made: str, key: SigningKey) -> Self:
        """Make a tree head, signed with the owner's key."""
        return cls(log, size, root, made, key.sign(_OWN, _encode(log, size, root, made)).hex())

    def is_by(self, key: PublicKey) -> bool:
        """Return whether the owner of `key` signed it."""
        return key.verify(_OWN, self._content, bytes.fromhex(self.signature))

    def countersign(self, key: SigningKey) -> str:
        """Make the other side's signature (hex), that it has seen this tree head."""
        return key.sign(_OTHER, self._content).hex()

    def is_countersigned(self, key: PublicKey, signature: str) -> bool:
        """Return whether the owner of `key` countersigned it."""
        return key.verify(_OTHER, self._content, bytes.fromhex(signature))

    def to_fields(self) -> dict[str, Any]:
        """Return `FIELDS` by name, as in an entry of a log."""
        return {name: getattr(self, name) for name in FIELDS}

    @classmethod
    def from_fields(cls, log: object, fields: Mapping[str, Any]) -> Self:
        """Make a tree head from untrusted fields.

        Args:
            log: Origin of the log's hash chain.
            fields: `FIELDS` by name; others are ignored.

        Raises:
            PrivacyError: A field is missing, or has a value that is not permitted.
        """
        values: dict[str, Any] = {"log": log, **{name: fields.get(name) for name in FIELDS}}
        if not all(KINDS["witnessed"][name](value) for name, value in values.items()):
            raise PrivacyError("that is no checkpoint of a log")
        return cls(**values)

    @property
    def _content(self) -> bytes:
        return _encode(self.log, self.size, self.root, self.made)


def _encode(log: str, size: int, root: str, made: str) -> bytes:
    return canonical_json({"log": log, "size": size, "root": root, "made": made})


def sign_new_key(previous: SigningKey, log: str, key: PublicKey) -> str:
    """Sign a log's new key with its old one; return the signature (hex)."""
    return previous.sign(_KEY, canonical_json({"log": log, "key": key.hex})).hex()


def is_new_key_signed(previous: PublicKey, log: str, key: PublicKey, signature: str) -> bool:
    """Return whether the old key of a log signed its new one."""
    return previous.verify(_KEY, canonical_json({"log": log, "key": key.hex}), bytes.fromhex(signature))
