"""TLS for a federation: an authority of its own, and the server's certificate by it (X.509, RFC 5280; EC P-384).

The sites trust this one authority and no other, so no public one can speak for the server. A node signs on with a key
of its own, in Flower's way: there are no certificates of nodes. Only to issue a certificate is the authority's key
needed: its owner may keep it elsewhere.
"""

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedglm.core.files import write_atomically
from fedglm.server.errors import ProjectError
from fedglm.server.project.private_keys import load_key, own_key

AUTHORITY_DAYS = 3650
WARNING_DAYS = 30
"""A certificate that ends within so many days is spoken of."""

LOOPBACK = ("localhost", "127.0.0.1")
"""Names under which the server's own machine reaches it; they stand in every certificate."""

_BACKDATED = datetime.timedelta(days=1)  # a site's clock may be somewhat late
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


@dataclass(frozen=True)
class Certificate:
    """What matters of a certificate.

    Attributes:
        begins: First moment of its validity, UTC.
        ends: Last moment, UTC.
        hosts: DNS names and IP addresses that it is for.
        sha256: Of its DER form, 64 hexadecimal digits: its fingerprint.
    """

    begins: datetime.datetime
    ends: datetime.datetime
    hosts: tuple[str, ...]
    sha256: str

    def days_left(self, now: datetime.datetime | None = None) -> float:
        """Days until it ends; negative when it has ended."""
        return (self.ends - (now or _now())).total_seconds() / 86400


def checked_host(text: str) -> str:
    """A DNS name (in lower case) or an IP address, as it stands in a certificate.

    Raises:
        ProjectError: It is neither; a port, a scheme and a wildcard belong to neither.
    """
    try:
        return str(ipaddress.ip_address(text.strip("[]")))
    except ValueError:
        name = text.rstrip(".").lower()
    labels = name.split(".")
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in labels) or labels[-1].isdigit():
        raise ProjectError(
            f"{text[:80]!r} is no host: give a DNS name or an IP address, without scheme or port, such as "
            "fl.example.org or 192.0.2.7"
        )
    return name


def make_authority(key_path: Path, path: Path, name: str) -> None:
    """Make the federation's certificate authority, unless it is there; what is there is never replaced.

    Args:
        key_path: The private key: PEM, readable by its owner alone.
        path: The self-signed certificate.
        name: Of the federation.

    Raises:
        ProjectError: The key is damaged or others may read it.
        StorageError: A file cannot be written.
    """
    if path.exists():
        return
    key = own_key(key_path)
    subject = _subject(f"{name} certificate authority")
    now = _now()
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA384())
    )
    write_atomically(path, made.public_bytes(Encoding.PEM))


def issue_certificate(
    authority_key: Path, authority: Path, key_path: Path, path: Path, hosts: Sequence[str], days: int
) -> None:
    """Issue the server's certificate, in the place of one that is there; the server's key stays what it is.

    Args:
        authority_key: As `make_authority` made it.
        authority: As `make_authority` made it.
        key_path: The server's private key; made if it is not there.
        path: The certificate.
        hosts: What `checked_host` returned; the names of the machine to itself are added.
        days: How long it is valid; at most as long as the authority is.

    Raises:
        ProjectError: A key is damaged or others may read it, or the authority ends too soon.
        StorageError: A file cannot be written.
    """
    signer, issuer = load_key(authority_key), _load(authority)
    _check_pair(authority, signer)
    key = own_key(key_path)
    now = _now()
    ends = now + datetime.timedelta(days=days)
    if ends > issuer.not_valid_after_utc:
        left = (issuer.not_valid_after_utc - now).days
        raise ProjectError(f"the authority {authority} ends in {left} days: ask for no more days than that")
    names = dict.fromkeys([*hosts, *LOOPBACK])
    made = (
        x509.CertificateBuilder()
        .subject_name(_subject(hosts[0]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - _BACKDATED, issuer.not_valid_before_utc))
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([_general_name(host) for host in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, SHA384())
    )
    write_atomically(path, made.public_bytes(Encoding.PEM))


def read_certificate(path: Path) -> Certificate:
    """Read a certificate back.

    Raises:
        ProjectError: The file is missing or holds no certificate.
    """
    found = _load(path)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(name.value) for name in names]
    except x509.ExtensionNotFound:
        hosts = []
    return Certificate(
        found.not_valid_before_utc, found.not_valid_after_utc, tuple(hosts), found.fingerprint(SHA256()).hex()
    )


def check_chain(path: Path, key_path: Path, authority: Path) -> None:
    """Hold a server's certificate to its key and to the authority that the sites trust.

    Raises:
        ProjectError: They do not belong together, or a file cannot be used.
    """
    found, issuer = _load(path), _load(authority)
    _check_pair(path, load_key(key_path))
    try:
        found.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise ProjectError(f"{path} is not by the authority {authority}: no site will trust it") from None


def _check_pair(path: Path, key: EllipticCurvePrivateKey) -> None:
    public = _load(path).public_key()
    if not isinstance(public, EllipticCurvePublicKey) or _der(public) != _der(key.public_key()):
        raise ProjectError(f"{path} and the key beside it do not belong together: put the right pair back")


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as exc:
        raise ProjectError(f"cannot read the certificate {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ProjectError(f"{path} holds no certificate in PEM: is it whole, and the right file?") from exc


def _der(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])  # RFC 5280 ends there


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)
