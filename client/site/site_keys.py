"""The keys that a site makes for itself, once, and the public halves that it hands over.

flower.key         EC P-384: Flower's SuperNode signs on with it
custody/site.key   Ed25519: signs the policy, and all that the site sends
SITE.pub           the public halves, signed by the latter

Both private keys are readable by their owner alone, and never leave the machine. By default they have no passphrase: a
node starts after a power cut with nobody there to type one.
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
from fedglm.privacy.keys.key_files import choose_key_encryption, read_key
from fedglm.privacy.keys.private_files import make_private_folder
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.keys.site_identity import SiteIdentity
from fedglm.privacy.log.signed_log import LOG


@dataclass(frozen=True)
class HandedOver:
    """What `make_keys` made.

    Attributes:
        identity: The public halves.
        path: The file to hand over.
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
) -> HandedOver:
    """Make a site's keys, or what is missing of them, and write the file to hand over.

    Args:
        folder: Of the site; `NAME.pub` goes there.
        name: The site's.
        flower_key: Path of the key that the SuperNode signs on with.
        signing_key: Path of the key that signs policy and updates.
        replace: Move the keys that are there away, under names that end in .old, and make new ones; the policy must
            then be signed again.
        passphrase: Locks the keys that are made.

    Raises:
        SiteError, PrivacyError: A key that is there is damaged, or others may use it.
        StorageError: A file cannot be written.
    """
    previous = SigningKey.load(signing_key) if replace and signing_key.exists() else None
    if replace:
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
        for path in (flower_key, signing_key):
            if path.exists():
                with storage_errors(path):
                    path.rename(path.with_name(f"{path.name}.{stamp}.old"))
    encryption = choose_key_encryption(passphrase)  # refuses a bad one before anything is made
    make_private_folder(signing_key.parent)
    is_new = not (flower_key.exists() and signing_key.exists())
    if not flower_key.exists():
        private = generate_private_key(SECP384R1())
        form = PrivateFormat.OpenSSH if passphrase is None else PrivateFormat.PKCS8
        create_privately(flower_key, private.private_bytes(Encoding.PEM, form, encryption))
    key = SigningKey.load(signing_key) if signing_key.exists() else SigningKey.create(signing_key, passphrase)
    log = signing_key.with_name(LOG)
    if previous is not None and log.is_file():
        CustodyLog(log, key, previous)  # the old key vouches for the new one
    flower, path = flower_public(flower_key), folder / f"{name}.pub"
    known = _handed_over(path)
    if known is None or (known.name, known.flower, known.signing) != (name, flower, key.public):
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        known = SiteIdentity(name, flower, key.public, today)
        write_atomically(path, known.to_text(key))
    return HandedOver(known, path, is_new)


def flower_public(path: Path) -> str:
    """The public half of the SuperNode's key, as one line.

    Raises:
        SiteError, PrivacyError: As of `flower_private`.
    """
    return _load(path).public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def flower_private(path: Path) -> bytes:
    """The SuperNode's key as Flower reads it, whether the file is locked or not: never to be written to a disk.

    Raises:
        SiteError: It is another kind of key.
        PrivacyError: There is no such key, others than its owner may use it, or its passphrase is missing or wrong.
    """
    return _load(path).private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())


def _load(path: Path) -> EllipticCurvePrivateKey:
    key = read_key(path)
    if not isinstance(key, EllipticCurvePrivateKey) or not isinstance(key.curve, SECP384R1):
        raise SiteError(f"{path} holds no EC P-384 key: is it whole?")
    return key


def _handed_over(path: Path) -> SiteIdentity | None:
    try:
        return SiteIdentity.from_text(path.read_text(encoding="utf-8"), origin=str(path))
    except (OSError, UnicodeDecodeError, PrivacyError):
        return None
