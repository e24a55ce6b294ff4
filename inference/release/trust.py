"""Whom a reader of releases trusts, and the signature of a release.

`SIGNATURE` is the signer's public key (32 bytes) and its Ed25519 signature over the manifest (64 bytes).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol, Self

from fedglm.inference.errors import InferenceError
from fedglm.privacy.keys.signing import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, PublicKey

SIGNATURE_FILE_BYTES: Final = PUBLIC_KEY_BYTES + SIGNATURE_BYTES
_CONTEXT: Final = "fedglm/light-release/1"


@dataclass(frozen=True, kw_only=True)
class Trust:
    """Whose releases a reader opens; made by `in_keys` or, for research on one's own machine, `unverified`.

    Attributes:
        keys: Public keys of those whose signature is enough.
        verifies: Whether a signature of one of them is required.
    """

    keys: frozenset[PublicKey]
    verifies: bool = True

    @classmethod
    def in_keys(cls, keys: Iterable[PublicKey]) -> Self:
        """Trust the owners of these keys, and nobody else.

        Raises:
            InferenceError: There is no key, so that nothing could be opened.
        """
        trust = cls(keys=frozenset(keys))
        if not trust.keys:
            raise InferenceError("name the public key of the server whose releases are trusted")
        return trust

    @classmethod
    def unverified(cls) -> Self:
        """Open a release whoever made it, as one's own that was never signed; the opened release says so.

        Its files are still checked against its manifest, which shows damage and no attack.
        """
        return cls(keys=frozenset(), verifies=False)


class Signer(Protocol):
    """Who signs a release: a `privacy.keys.signing.SigningKey`, for those who do not know `privacy`."""

    @property
    def public(self) -> PublicKey:
        """The key that verifies."""

    def sign(self, context: str, message: bytes) -> bytes:
        """Sign a message in a context."""


def sign_manifest(key: Signer, manifest: bytes) -> bytes:
    """Return the content of the signature's file, 96 bytes."""
    return key.public.raw + key.sign(_CONTEXT, manifest)


def check_signature(manifest: bytes, signature: bytes | None, trust: Trust) -> PublicKey | None:
    """Check who signed a manifest, before it is parsed.

    Args:
        manifest: Its bytes.
        signature: Content of the signature's file; None where there is none.
        trust: Whom the reader trusts.

    Returns:
        The signer; None for an unsigned release, which only `Trust.unverified` opens.

    Raises:
        InferenceError: It is unsigned, signed by somebody else, or the signature is wrong. A wrong one is refused
            whatever the trust is.
    """
    if signature is None:
        if trust.verifies:
            raise InferenceError("the release is not signed: fetch a signed one, or open it as unverified")
        return None
    if len(signature) != SIGNATURE_FILE_BYTES:
        raise InferenceError(f"the release's signature has {len(signature)} bytes, not {SIGNATURE_FILE_BYTES}")
    signer = PublicKey(signature[:PUBLIC_KEY_BYTES])
    if trust.verifies and signer not in trust.keys:
        trusted = ", ".join(sorted(key.fingerprint() for key in trust.keys))
        raise InferenceError(f"the release is signed by {signer.fingerprint()}, whom you do not trust (but {trusted})")
    if not signer.verify(_CONTEXT, manifest, signature[PUBLIC_KEY_BYTES:]):
        raise InferenceError(f"the release is not what {signer.fingerprint()} signed: fetch it again")
    return signer
