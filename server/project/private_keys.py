"""Private keys of certificates (EC P-384) on the disk: PEM, unencrypted, readable by their owner alone."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from fedglm.core.files import create_privately
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.private_files import read_private_file
from fedglm.server.errors import ProjectError


def load_or_create_key(path: Path) -> EllipticCurvePrivateKey:
    """Load the private key at `path`; create it if missing.

    Raises:
        ProjectError: The file is damaged, or other users may read it.
        StorageError: The file cannot be written.
    """
    if not path.exists():
        content = generate_private_key(SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        create_privately(path, content)
    return load_key(path)


def load_key(path: Path) -> EllipticCurvePrivateKey:
    """Load the private key at `path`.

    Raises:
        ProjectError: The file is missing or damaged, or other users may read it.
    """
    content = _read(path)
    try:
        key = load_pem_private_key(content, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        # Outside the handler: a chained error could quote the content of the file.
        raise ProjectError(f"{path} holds no unencrypted EC P-384 key in PEM: is it whole, and the right file?")
    return key


def check_private(path: Path) -> None:
    """Check that only its owner may read or write the key.

    Raises:
        ProjectError: Other users may, or there is no such file.
    """
    _read(path)


def _read(path: Path) -> bytes:
    try:
        return read_private_file(path, remedy="make a new project")
    except PrivacyError as exc:
        raise ProjectError(str(exc)) from exc
