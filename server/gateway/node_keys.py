"""Sender of a request: the site whose key signed its headers, identified before a byte of the body is read.

Flower's nodes sign the time of each request, and send time, signature and public key as headers. Flower verifies the
signature once it has read the body; since all that this takes is in the headers, it is verified here before.
"""

import datetime
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_ssh_public_key
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER

from fedglm.privacy.keys.site_identity import SiteIdentity
from fedglm.server.project.enrolment import read_enrolled_sites
from fedglm.server.project.folder import Project

Headers = Sequence[tuple[bytes, bytes]]

_KEY, _SIGNATURE, _TIMESTAMP = (
    name.encode() for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
)


@dataclass(frozen=True)
class Sender:
    """Sender of a request, by its headers.

    Attributes:
        site: Name of the enrolled site with the request's key; None for an unknown key.
        age_s: Seconds since the request was sent, by the sender's clock; None without a valid timestamp.
        is_signed: Whether the site's key signed the timestamp.
    """

    site: str | None
    age_s: float | None
    is_signed: bool

    @property
    def is_fresh(self) -> bool:
        """Whether Flower accepts the timestamp as current."""
        return self.age_s is not None and -SYSTEM_TIME_TOLERANCE < self.age_s < (
            TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        )


class EnrolledKeys:
    """Public keys of the enrolled sites, as sent in the headers of their requests.

    The project's folders are read again whenever one of them changed, so that a revoked site is rejected at once.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._modified: tuple[int, ...] = ()
        self._sites: dict[bytes, tuple[str, EllipticCurvePublicKey]] = {}

    def identify_sender(self, headers: Headers) -> Sender:
        """Identify the sender of a request by its headers, and verify the signature.

        Raises:
            ProjectError, PrivacyError: A file is damaged.
            OSError: A folder cannot be read.
        """
        fields = dict(reversed(headers))  # of two with the same name the first one counts, as it does for Flower
        timestamp = fields.get(_TIMESTAMP, b"")
        entry = self._read_keys().get(fields.get(_KEY, b""))
        if entry is None:
            return Sender(None, _compute_age(timestamp), is_signed=False)
        site, key = entry
        is_signed = _is_valid_signature(key, timestamp, fields.get(_SIGNATURE, b""))
        return Sender(site, _compute_age(timestamp), is_signed=is_signed)

    def _read_keys(self) -> dict[bytes, tuple[str, EllipticCurvePublicKey]]:
        folders = (self._project.enrolled_folder, self._project.revoked_folder)
        modified = tuple(folder.stat().st_mtime_ns for folder in folders)
        if modified != self._modified:
            sites = read_enrolled_sites(self._project).values()
            self._sites = {
                encode_key_header(identity): (identity.name, _load_public_key(identity)) for identity in sites
            }
            self._modified = modified
        return self._sites


def encode_key_header(identity: SiteIdentity) -> bytes:
    """Encode the site's public key as in the header of Flower's nodes: PEM in base64."""
    return b64encode(_load_public_key(identity).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _load_public_key(identity: SiteIdentity) -> EllipticCurvePublicKey:
    key = load_ssh_public_key(identity.flower.encode())
    assert isinstance(key, EllipticCurvePublicKey)  # noqa: S101 - `SiteIdentity` accepts no other
    return key


def _is_valid_signature(key: EllipticCurvePublicKey, timestamp: bytes, signature: bytes) -> bool:
    try:
        key.verify(b64decode(signature, validate=True), timestamp, ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True


def _compute_age(timestamp: bytes) -> float | None:
    """Return the seconds since an ISO 8601 timestamp with time zone; None if it is malformed."""
    try:
        sent = datetime.datetime.fromisoformat(timestamp.decode("ascii"))
        return (datetime.datetime.now(datetime.UTC) - sent).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: no time zone
        return None
