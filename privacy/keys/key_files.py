"""Files of private keys: only their owner may read them, and they are encrypted if they have a passphrase."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    KeySerializationEncryption,
    NoEncryption,
    load_pem_private_key,
    load_ssh_private_key,
)

from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.passphrase import get_passphrase
from fedglm.privacy.keys.private_files import read_private_file

_MIN_LENGTH: Final = 12
"""Minimum number of characters of a passphrase."""

_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"


def read_key(path: Path) -> object | None:
    """Read the private key in a file, in OpenSSH's format or PKCS 8 in PEM.

    Returns:
        The key, of any kind; None where the file has no key that can be parsed.

    Raises:
        PrivacyError: There is no such file, others than its owner may use it, or it is encrypted and the passphrase is
            missing or wrong.
    """
    content = read_private_file(path)
    parse = load_ssh_private_key if content.startswith(_OPENSSH) else load_pem_private_key
    encrypted = False
    try:
        key = _try_parse(parse, content, None)
    except TypeError:
        encrypted = True
    # Outside the handler: a chained error could quote the file's content.
    if encrypted:
        key = _try_parse(parse, content, get_passphrase(path).encode())
        if key is None:
            raise PrivacyError(f"the passphrase does not open the key {path}")
    return key


def choose_key_encryption(passphrase: str | None) -> KeySerializationEncryption:
    """Choose the encryption of a new key's file.

    Args:
        passphrase: Passphrase of the key; None for no encryption.

    Raises:
        PrivacyError: The passphrase is too short to protect the key.
    """
    if passphrase is None:
        return NoEncryption()
    check_passphrase(passphrase)
    return BestAvailableEncryption(passphrase.encode())


def check_passphrase(passphrase: str) -> None:
    """Check the length of a new passphrase.

    Raises:
        PrivacyError: The passphrase is too short to protect a key.
    """
    if len(passphrase) < _MIN_LENGTH:
        raise PrivacyError(f"a passphrase has at least {_MIN_LENGTH} characters: choose a longer one")


def _try_parse(parse: Callable[[bytes, bytes | None], object], content: bytes, password: bytes | None) -> object | None:
    try:
        return parse(content, password)
    except (ValueError, UnsupportedAlgorithm):
        return None
