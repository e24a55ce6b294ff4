"""Private keys of certificates (EC P-384) on the disk: PEM, unencrypted, for their owner's eyes alone."""

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
from fedglm.server.errors import ProjectError


def own_key(path: Path) -> EllipticCurvePrivateKey:
    """The key in the file at `path`; made if there is none.

    Raises:
        ProjectError: It is damaged, or others may read it.
        StorageError: It cannot be written.
    """
    if not path.exists():
        content = generate_private_key(SECP384R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        create_privately(path, content)
    return load_key(path)


def load_key(path: Path) -> EllipticCurvePrivateKey:
    """The key in the file at `path`.

    Raises:
        ProjectError: It is missing or damaged, or others may read it.
    """
    check_private(path)
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    except OSError as exc:
        raise ProjectError(f"cannot read the key {path}: {exc.strerror}") from exc
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        # Outside the handler: a chained error could quote what the file holds.
        raise ProjectError(f"{path} holds no unencrypted EC P-384 key in PEM: is it whole, and the right file?")
    return key


def check_private(path: Path) -> None:
    """Refuse a key that others than its owner may use.

    Raises:
        ProjectError: They may, or there is no such file.
    """
    try:
        rights = path.stat().st_mode & 0o777
    except OSError as exc:
        raise ProjectError(f"cannot read the key {path}: {exc.strerror}") from exc
    if rights & 0o077:
        raise ProjectError(
            f"others than its owner may use the key {path} (rights {rights:04o}): if nobody has, run chmod 600 {path}; "
            "else make a new project"
        )
