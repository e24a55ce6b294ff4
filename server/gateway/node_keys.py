"""Who sends a request: the site whose key signed its headers, known before a byte of the body is read.

A node of Flower's signs the time of each request, and sends time, signature and public key as headers. Flower verifies
that once it has read the body; all that it needs stands in the headers, so here it is verified before.
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
from fedglm.server.project.enrolment import enrolled_sites
from fedglm.server.project.folder import Project

Headers = Sequence[tuple[bytes, bytes]]

_KEY, _SIGNATURE, _TIME = (
    name.encode() for name in (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
)


@dataclass(frozen=True)
class Sender:
    """What the headers of a request prove.

    Attributes:
        site: Name of the enrolled site that its key is of; None for a stranger's key.
        late_s: How long ago it was sent, by its own clock; None where it gives no time.
        is_signed: Whether the site's key signed that time.
    """

    site: str | None
    late_s: float | None
    is_signed: bool

    @property
    def is_timely(self) -> bool:
        """Whether Flower takes the time for now."""
        return self.late_s is not None and -SYSTEM_TIME_TOLERANCE < self.late_s < (
            TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE
        )


class EnrolledKeys:
    """The keys of the sites that may take part, as they stand in the headers of their requests.

    It looks at the project's folders again whenever one of them changed, so that who was revoked is out at once.
    """

    def __init__(self, project: Project) -> None:
        self._project = project
        self._seen: tuple[int, ...] = ()
        self._sites: dict[bytes, tuple[str, EllipticCurvePublicKey]] = {}

    def sender(self, headers: Headers) -> Sender:
        """Who sends a request with these headers.

        Raises:
            ProjectError, PrivacyError: A file is damaged.
            OSError: A folder cannot be read.
        """
        fields = dict(reversed(headers))  # of two with one name the first one counts, as it does for Flower
        timestamp = fields.get(_TIME, b"")
        known = self._known().get(fields.get(_KEY, b""))
        if known is None:
            return Sender(None, _seconds_late(timestamp), is_signed=False)
        site, key = known
        return Sender(site, _seconds_late(timestamp), is_signed=_verifies(key, timestamp, fields.get(_SIGNATURE, b"")))

    def _known(self) -> dict[bytes, tuple[str, EllipticCurvePublicKey]]:
        folders = (self._project.enrolled_folder, self._project.revoked_folder)
        seen = tuple(folder.stat().st_mtime_ns for folder in folders)
        if seen != self._seen:
            sites = enrolled_sites(self._project).values()
            self._sites = {key_header(identity): (identity.name, _key_of(identity)) for identity in sites}
            self._seen = seen
        return self._sites


def key_header(identity: SiteIdentity) -> bytes:
    """The site's public key as Flower's nodes send it along: the PEM form in base64."""
    return b64encode(_key_of(identity).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def _key_of(identity: SiteIdentity) -> EllipticCurvePublicKey:
    key = load_ssh_public_key(identity.flower.encode())
    assert isinstance(key, EllipticCurvePublicKey)  # noqa: S101 - `SiteIdentity` takes no other
    return key


def _verifies(key: EllipticCurvePublicKey, timestamp: bytes, signature: bytes) -> bool:
    try:
        key.verify(b64decode(signature, validate=True), timestamp, ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True


def _seconds_late(timestamp: bytes) -> float | None:
    try:
        sent = datetime.datetime.fromisoformat(timestamp.decode("ascii"))
        return (datetime.datetime.now(datetime.UTC) - sent).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: no time zone
        return None
