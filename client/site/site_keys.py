"""A site's keys, which it makes for itself, once, and the public keys that it hands over.

flower.key         EC P-384: authenticates Flower's SuperNode
custody/site.key   Ed25519: signs the policy, and all messages of the site
SITE.pub           the public keys, signed with the latter

Both private keys are readable by their owner alone, and never leave the machine. By default they have no passphrase: a
node must be able to start after a power cut when nobody is there to type one.
"""

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, EllipticCurvePrivateKey, generate_private_key
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fedglm.client.site.settings import SiteError
from fedglm.core.files import create_privately, storage_errors, write_atomically
from fedglm.privacy.custody.site_log import CustodyLog
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.key_files import lock, read_key
from fedglm.privacy.keys.private_files import private_folder
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.keys.site_identity import SiteIdentity
from fedglm.privacy.log.signed_log import LOG


@dataclass(frozen=True)
class SiteKeys:
    """Result of `make_keys`.

    Attributes:
        identity: The public keys.
        path: Path of the file to hand over.
        is_new: Whether a key is new.
    """

    identity: SiteIdentity
    path: Path
    is_new: bool


def make_keys(
    folder: Path,
    name: str,
    flower_key: Path,
    signing_key: Path,
    *,
    replace: bool = False,
    passphrase: str | None = None,
) -> SiteKeys:
    """Make the missing keys of a site, and write the file to hand over.

    Args:
        folder: Folder of the site, in which `NAME.pub` is written.
        name: Name of the site.
        flower_key: Path of the key that authenticates the SuperNode.
        signing_key: Path of the key that signs policy and updates.
        replace: Move existing keys away, to names that end in .old, and make new ones; the policy must then be signed
            again.
        passphrase: Encrypts the new keys; None leaves them unencrypted.

    Raises:
        SiteError, PrivacyError: An existing key is damaged, or others may use it.
        StorageError: A file cannot be written.
    """
    previous = SigningKey.load(signing_key) if replace and signing_key.exists() else None
    if replace:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        for path in (flower_key, signing_key):
            if path.exists():
                with storage_errors(path):
                    path.rename(path.with_name(f"{path.name}.{stamp}.old"))
    encryption = lock(passphrase)  # refuses an invalid one before anything is made
    private_folder(signing_key.parent)
    is_new = not (flower_key.exists() and signing_key.exists())
    if not flower_key.exists():
        private_key = generate_private_key(SECP384R1())
        key_format = PrivateFormat.OpenSSH if passphrase is None else PrivateFormat.PKCS8
        create_privately(flower_key, private_key.private_bytes(Encoding.PEM, key_format, encryption))
    key = SigningKey.load(signing_key) if signing_key.exists() else SigningKey.create(signing_key, passphrase)
    log = signing_key.with_name(LOG)
    if previous is not None and log.is_file():
        CustodyLog(log, key, previous)  # the old key vouches for the new one
    flower, path = read_flower_public_key(flower_key), folder / f"{name}.pub"
    identity = _read_identity(path)
    if identity is None or (identity.name, identity.flower, identity.signing) != (name, flower, key.public):
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        identity = SiteIdentity(name, flower, key.public, today)
        write_atomically(path, identity.to_text(key))
    return SiteKeys(identity, path, is_new)


def read_flower_public_key(path: Path) -> str:
    """Read the public key of the SuperNode's key pair, as one line of OpenSSH's format.

    Raises:
        SiteError, PrivacyError: As `read_flower_private_key`.
    """
    return _load_flower_key(path).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def read_flower_private_key(path: Path) -> bytes:
    """Read the SuperNode's private key, unencrypted as Flower needs it: never write it to a disk.

    Raises:
        SiteError: It is another kind of key.
        PrivacyError: There is no such key, others than its owner may use it, or its passphrase is missing or wrong.
    """
    return _load_flower_key(path).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _load_flower_key(path: Path) -> EllipticCurvePrivateKey:
    key = read_key(path)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise SiteError(f"{path} holds no EC P-384 key: is it whole?")
    return key


def _read_identity(path: Path) -> SiteIdentity | None:
    try:
        return SiteIdentity.from_text(path.read_text(encoding="utf-8"), origin=str(path))
    except (OSError, UnicodeDecodeError, PrivacyError):
        return None
