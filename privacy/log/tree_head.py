"""Checkpoints of a log: its owner signs how long it is and what its root is, and the other side countersigns.

An owner can rewrite its own log and sign it anew. What it cannot change is what the other side has signed, and keeps in
a log of its own: a log whose first entries do not give the countersigned root was rewritten, cut or forked.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey, SigningKey
from fedglm.privacy.log.entries import KINDS

COLUMNS: Final = ("size", "root", "made", "signature")
"""What a checkpoint says, beside the log that it is of: so it stands in tables, entries, messages and proofs."""

MAX_SEALS: Final = 1000
"""Checkpoints of one run's server that a site keeps: with no limit a server could fill its disk."""

_OWN, _OTHER, _KEY = "fedglm/checkpoint/1", "fedglm/witness/1", "fedglm/key/1"


@dataclass(frozen=True)
class SignedTreeHead:
    """How a log stood, signed by its owner.

    Attributes:
        log: What the log's chain begins with (hex): no two logs share it.
        size: Number of entries.
        root: Of the Merkle tree over them (hex).
        made: When: UTC, ISO 8601 to the second.
        signature: Of the owner (hex).
    """

    log: str
    size: int
    root: str
    made: str
    signature: str

    @classmethod
    def sign(cls, log: str, size: int, root: str, made: str, key: SigningKey) -> Self:
        """The owner's checkpoint."""
        return cls(log, size, root, made, key.sign(_OWN, _content(log, size, root, made)).hex())

    def is_by(self, key: PublicKey) -> bool:
        """Whether the owner of `key` signed it."""
        return key.verify(_OWN, self._content, bytes.fromhex(self.signature))

    def countersign(self, key: SigningKey) -> str:
        """The other side's signature (hex): it has seen the log so."""
        return key.sign(_OTHER, self._content).hex()

    def is_countersigned(self, key: PublicKey, signature: str) -> bool:
        """Whether the owner of `key` countersigned it."""
        return key.verify(_OTHER, self._content, bytes.fromhex(signature))

    def to_fields(self) -> dict[str, Any]:
        """As in an entry of a log, without the log's name."""
        return {name: getattr(self, name) for name in COLUMNS}

    @classmethod
    def from_fields(cls, log: object, fields: Mapping[str, Any]) -> Self:
        """Read what a stranger sent.

        Args:
            log: See above.
            fields: `COLUMNS`; others may stand among them.

        Raises:
            PrivacyError: A field is missing, or not what a checkpoint holds.
        """
        given: dict[str, Any] = {"log": log, **{name: fields.get(name) for name in COLUMNS}}
        if not all(KINDS["witnessed"][name](value) for name, value in given.items()):
            raise PrivacyError("that is no checkpoint of a log")
        return cls(**given)

    @property
    def _content(self) -> bytes:
        return _content(self.log, self.size, self.root, self.made)


def _content(log: str, size: int, root: str, made: str) -> bytes:
    return canonical_json({"log": log, "size": size, "root": root, "made": made})


def vouch(previous: SigningKey, log: str, key: PublicKey) -> str:
    """Signature (hex) of a log's old key under its new one."""
    return previous.sign(_KEY, canonical_json({"log": log, "key": key.hex})).hex()


def is_vouched(previous: PublicKey, log: str, key: PublicKey, signature: str) -> bool:
    """Whether the old key of a log signed its new one."""
    return previous.verify(_KEY, canonical_json({"log": log, "key": key.hex}), bytes.fromhex(signature))
