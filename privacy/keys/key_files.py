"""Files of private keys: their owner's alone, and locked with a passphrase where somebody wants that."""

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
from fedglm.privacy.keys.passphrase import passphrase_of
from fedglm.privacy.keys.private_files import read_privately

MIN_CHARACTERS: Final = 12

_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"


def read_key(path: Path) -> object | None:
    """The private key in a file, in OpenSSH's form or PKCS 8 in PEM.

    Returns:
        The key, of whatever kind; None where the file holds none that could be read.

    Raises:
        PrivacyError: There is no such file, others than its owner may use it, or it is locked and the passphrase is
            missing or wrong.
    """
    content = read_privately(path)
    parse = load_ssh_private_key if content.startswith(_OPENSSH) else load_pem_private_key
    locked = False
    try:
        key = _parsed(parse, content, None)
    except TypeError:
        locked = True
    # Outside the handler: a chained error could quote what the file holds.
    if locked:
        key = _parsed(parse, content, passphrase_of(path).encode())
        if key is None:
            raise PrivacyError(f"the passphrase does not open the key {path}")
    return key


def lock(passphrase: str | None) -> KeySerializationEncryption:
    """How a new key is to be written.

    Args:
        passphrase: None leaves it readable by whoever may read the file.

    Raises:
        PrivacyError: It is too short to keep anybody out.
    """
    if passphrase is None:
        return NoEncryption()
    if len(passphrase) < MIN_CHARACTERS:
        raise PrivacyError(f"a passphrase has at least {MIN_CHARACTERS} characters: choose a longer one")
    return BestAvailableEncryption(passphrase.encode())


def _parsed(parse: Callable[[bytes, bytes | None], object], content: bytes, password: bytes | None) -> object | None:
    try:
        return parse(content, password)
    except (ValueError, UnsupportedAlgorithm):
        return None
