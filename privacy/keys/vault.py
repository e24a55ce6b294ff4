"""Encryption at rest of what a node remembers: AES-256-GCM, by a key in a file, alone or locked with a passphrase.

Each content is bound to its name, so that one file cannot stand in another's place. The file of the key is JSON:

    {"format": "fedglm-state-key/1", "key": BASE64}                                 the key as it is
    {"format": "fedglm-state-key/1", "salt": BASE64, "locked": BASE64}              locked by scrypt (RFC 7914)
"""

import base64
import json
import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from fedglm.core.files import create_privately
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.key_files import MIN_CHARACTERS
from fedglm.privacy.keys.passphrase import passphrase_of
from fedglm.privacy.keys.private_files import read_privately

MAGIC: Final = b"fedglm-sealed/1\n"
"""What sealed content begins with."""

_FORMAT: Final = "fedglm-state-key/1"
_KEY_BYTES, _NONCE_BYTES, _SALT_BYTES = 32, 12, 16
_COST: Final = 2**15  # 32 MiB of memory and about a tenth of a second


class Vault:
    """Seals content and opens it; `create` and `load` keep its key in a file that only its owner may read."""

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def create(cls, path: Path, passphrase: str | None = None) -> "Vault":
        """A fresh key in a new file.

        Args:
            path: Of the file.
            passphrase: Locks the key.

        Raises:
            PrivacyError: There is a file at `path` already, or the passphrase is too short.
            StorageError: The file cannot be written.
        """
        key = os.urandom(_KEY_BYTES)
        words = {"format": _FORMAT}
        if passphrase is None:
            words["key"] = _text(key)
        else:
            if len(passphrase) < MIN_CHARACTERS:
                raise PrivacyError(f"a passphrase has at least {MIN_CHARACTERS} characters: choose a longer one")
            salt = os.urandom(_SALT_BYTES)
            words |= {"salt": _text(salt), "locked": _text(cls(_derived(passphrase, salt)).seal("key", key))}
        try:
            create_privately(path, json.dumps(words).encode() + b"\n")
        except FileExistsError:
            raise PrivacyError(f"{path} is there already: what it has sealed would be lost") from None
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> "Vault":
        """The key in the file at `path`.

        Raises:
            PrivacyError: There is no such file, others than its owner may read it, it holds something else, or it is
                locked and the passphrase is missing or wrong.
        """
        try:
            words = json.loads(read_privately(path))
            if words["format"] != _FORMAT:
                raise ValueError
            if "key" in words:
                key = base64.b64decode(words["key"], validate=True)
            else:
                salt, locked = (base64.b64decode(words[name], validate=True) for name in ("salt", "locked"))
                key = _unlocked(path, salt, locked)
            if len(key) != _KEY_BYTES:
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise PrivacyError(f"{path} holds no key for a node's state: is it whole, and the right file?") from None
        return cls(key)

    def seal(self, name: str, content: bytes) -> bytes:
        """`content`, encrypted, to be kept under `name`."""
        nonce = os.urandom(_NONCE_BYTES)
        return MAGIC + nonce + self._cipher.encrypt(nonce, content, name.encode())

    def open(self, name: str, sealed: bytes) -> bytes:
        """What `seal` was given.

        Raises:
            PrivacyError: It was sealed by another key or under another name, or was changed.
        """
        start = len(MAGIC) + _NONCE_BYTES
        try:
            if not sealed.startswith(MAGIC):
                raise InvalidTag
            return self._cipher.decrypt(sealed[len(MAGIC) : start], sealed[start:], name.encode())
        except (InvalidTag, ValueError):
            raise PrivacyError(f"{name} was sealed by another key, or was changed") from None

    def __repr__(self) -> str:
        return "Vault(...)"

    def __reduce__(self) -> str:
        raise TypeError("a key is not pickled or copied: load it from its file where it is needed")


def _derived(passphrase: str, salt: bytes) -> bytes:
    return Scrypt(salt=salt, length=_KEY_BYTES, n=_COST, r=8, p=1).derive(passphrase.encode())


def _unlocked(path: Path, salt: bytes, locked: bytes) -> bytes:
    try:
        return Vault(_derived(passphrase_of(path), salt)).open("key", locked)
    except PrivacyError as exc:
        if "sealed by another key" not in str(exc):
            raise
    raise PrivacyError(f"the passphrase does not open the key {path}")


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
