"""Encryption at rest of a node's state: AES-256-GCM, with a key in a file, which a passphrase may encrypt.

The name of a content is authenticated with it, so that one file cannot replace another. The key's file is JSON:

    {"format": "fedglm-state-key/1", "key": BASE64}                         the plain key
    {"format": "fedglm-state-key/1", "salt": BASE64, "locked": BASE64}      encrypted, by scrypt (RFC 7914)
"""

import base64
import json
import os
from pathlib import Path
from typing import Final, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedglm.core.files import create_privately
from fedglm.privacy.errors import PrivacyError, SealError
from fedglm.privacy.keys.key_files import check_passphrase
from fedglm.privacy.keys.passphrase import get_passphrase
from fedglm.privacy.keys.private_files import read_private_file

MAGIC: Final = b"fedglm-sealed/1\n"
"""First bytes of sealed content."""

_FORMAT: Final = "fedglm-state-key/1"
_KEY_BYTES, _NONCE_BYTES, _SALT_BYTES = 32, 12, 16
_SCRYPT_COST: Final = 2**15  # 32 MiB of memory and about a tenth of a second


class Vault:
    """Encrypts and decrypts content; its key is in a file that only its owner may read (`create`, `load`)."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def create(cls, path: Path, passphrase: str | None = None) -> "Vault":
        """Generate a key in a new file.

        Args:
            path: Path of the new file.
            passphrase: Passphrase to encrypt the file with; None for no encryption.

        Raises:
            PrivacyError: The file exists already, or the passphrase is too short.
            StorageError: The file cannot be written.
        """
        key = os.urandom(_KEY_BYTES)
        fields = {"format": _FORMAT}
        if passphrase is None:
            fields["key"] = _to_base64(key)
        else:
            check_passphrase(passphrase)
            salt = os.urandom(_SALT_BYTES)
            fields |= {
                "salt": _to_base64(salt),
                "locked": _to_base64(cls(_derive_key(passphrase, salt)).seal("key", key)),
            }
        try:
            create_privately(path, json.dumps(fields).encode() + b"\n")
        except FileExistsError:
            raise PrivacyError(f"{path} is there already: what it has sealed would be lost") from None
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> "Vault":
        """Load the key in the file at `path`.

        Raises:
            PrivacyError: There is no such file, others than its owner may read it, it has no such key, or it is
                encrypted and the passphrase is missing or wrong.
        """
        try:
            fields = json.loads(read_private_file(path))
            if fields["format"] != _FORMAT:
                raise ValueError
            if "key" in fields:
                key = base64.b64decode(fields["key"], validate=True)
            else:
                salt, encrypted = (base64.b64decode(fields[name], validate=True) for name in ("salt", "locked"))
                key = _unlock_key(path, salt, encrypted)
            if len(key) != _KEY_BYTES:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise PrivacyError(f"{path} holds no key for a node's state: is it whole, and the right file?") from None
        return cls(key)

    def seal(self, name: str, content: bytes) -> bytes:
        """Encrypt `content`, to be kept under `name`."""
        nonce = os.urandom(_NONCE_BYTES)
        return MAGIC + nonce + self._cipher.encrypt(nonce, content, name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """Decrypt what `seal` returned.

        Raises:
            SealError: The content was sealed by another key or under another name, or was changed.
        """
        start = len(MAGIC) + _NONCE_BYTES
        try:
            if not sealed.startswith(MAGIC):
                raise InvalidTag
            return self._cipher.decrypt(sealed[len(MAGIC) : start], sealed[start:], name.encode())
        except (InvalidTag, ValueError):
            raise SealError(f"{name} was sealed by another key, or was changed") from None

    def __repr__(self) -> str:
        return "Vault(...)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a key is not pickled or copied: load it from its file where it is needed")


def _derive_key(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=_KEY_BYTES, n=_SCRYPT_COST, r=8, p=1).derive(passphrase.encode())


def _unlock_key(path: Path, salt: bytes, encrypted: bytes) -> bytes:
    passphrase = get_passphrase(path)
    try:
        return Vault(_derive_key(passphrase, salt)).open("key", encrypted)
    except SealError:
        raise PrivacyError(f"the passphrase does not open the key {path}") from None


def _to_base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
