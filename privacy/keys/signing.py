"""Ed25519 keys of sites and servers, and their files (RFC 8032).

A signature is over a *context* and the message, so that a signature of a policy is never valid for a run plan. A
private key never appears in a repr, in an error, or in a copy for another process.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat

from fedglm.core.files import create_privately
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.key_files import choose_key_encryption, read_key

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
_CONTEXT = re.compile(r"fedglm/[a-z-]+/[1-9][0-9]*")


@dataclass(frozen=True)
class PublicKey:
    """The public key by which others identify a site or a server.

    Attributes:
        raw: The key, 32 bytes.

    Raises:
        PrivacyError: `raw` has another length.
    """

    raw: bytes

    def __post_init__(self) -> None:
        if type(self.raw) is not bytes or len(self.raw) != PUBLIC_KEY_BYTES:
            raise PrivacyError(f"a public key has {PUBLIC_KEY_BYTES} bytes")

    @classmethod
    def from_hex(cls, text: str) -> "PublicKey":
        """Parse a key in the form of `hex`.

        Raises:
            PrivacyError: `text` is not 64 lower-case hexadecimal digits.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", text):
            raise PrivacyError(f"a public key is written as 64 digits 0-9 a-f, not {text[:80]!r}")
        return cls(bytes.fromhex(text))

    @property
    def hex(self) -> str:
        """The key as 64 lower-case hexadecimal digits."""
        return self.raw.hex()

    def fingerprint(self) -> str:
        """Return half of the key's SHA-256, in groups of four digits: short enough to compare over the telephone."""
        digits = hashlib.sha256(self.raw).hexdigest()[:32]
        return "-".join(digits[start : start + 4] for start in range(0, len(digits), 4))

    def verify(self, context: str, message: bytes, signature: bytes) -> bool:
        """Return whether the owner of this key signed `message` in this context."""
        signed = _frame_message(context, message)
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, signed)
        except (InvalidSignature, ValueError):  # ValueError: the 32 bytes are no point on the curve
            return False
        return True

    def __str__(self) -> str:
        return self.hex


class SigningKey:
    """A private key, in a file that only its owner may read (`create`, `load`) or in memory only (`generate`).

    Attributes:
        public: The public key, for those who verify.
    """

    __slots__ = ("_private", "public")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = PublicKey(private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> "SigningKey":
        """Generate a key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def create(cls, path: Path, passphrase: str | None = None) -> "SigningKey":
        """Generate a key in a new file at `path`: PEM (PKCS 8), readable by its owner only.

        Args:
            path: Path of the new file.
            passphrase: Passphrase to encrypt the file with; None for no encryption.

        Raises:
            PrivacyError: The file exists already (a key is never replaced), or the passphrase is too short.
            StorageError: The file cannot be written.
        """
        key = cls.generate()
        content = key._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, choose_key_encryption(passphrase))
        try:
            create_privately(path, content)
        except FileExistsError:
            raise PrivacyError(f"{path} is there already: a key is never replaced; move the old one away") from None
        return key

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Load the key in the file at `path`.

        Raises:
            PrivacyError: There is no such file, others than its owner may use it, it has no Ed25519 key, or it is
                encrypted and the passphrase is missing or wrong.
        """
        private = read_key(path)
        if not isinstance(private, Ed25519PrivateKey):
            raise PrivacyError(f"{path} holds no Ed25519 key in PEM: is it whole, and the right file?")
        return cls(private)

    def sign(self, context: str, message: bytes) -> bytes:
        """Sign a message in a context.

        Args:
            context: Kind of the message and its version, as `fedglm/policy/1`.
            message: The exact bytes.

        Returns:
            The signature, 64 bytes, for `PublicKey.verify` with the same context and message.
        """
        return self._private.sign(_frame_message(context, message))

    def __repr__(self) -> str:
        return f"SigningKey({self.public.fingerprint()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a private key is not pickled or copied: load it from its file where it is needed")


def _frame_message(context: str, message: bytes) -> bytes:
    if not _CONTEXT.fullmatch(context):
        raise ValueError(f"a context of signatures looks like fedglm/policy/1, not {context!r}")
    return context.encode() + b"\0" + message  # a context has no zero byte: no two pairs give the same bytes
