"""TLS of a federation: its own certificate authority, and the server's certificate (X.509, RFC 5280; EC P-384).

The sites trust this one authority and no other, so no public authority can vouch for another server. A node
authenticates with a key of its own, by Flower's protocol: nodes have no certificates. The authority's key is needed
only to issue a certificate: its owner may keep it elsewhere.
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
from fedglm.server.project.private_keys import load_key, load_or_create_key

AUTHORITY_DAYS = 3650
WARNING_DAYS = 30
"""Days before the end of a certificate from which a warning is given."""

LOOPBACK = ("localhost", "127.0.0.1")
"""Names under which the server's own machine connects to it; every certificate contains them."""

_BACKDATED_BY = datetime.timedelta(days=1)  # a site's clock may be slow
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


@dataclass(frozen=True)
class Certificate:
    """Properties of a certificate.

    Attributes:
        begins: Start of its validity, UTC.
        ends: End of its validity, UTC.
        hosts: DNS names and IP addresses (subject alternative names).
        sha256: Fingerprint: SHA-256 of its DER encoding, 64 hexadecimal digits.
    """

    begins: datetime.datetime
    ends: datetime.datetime
    hosts: tuple[str, ...]
    sha256: str

    def days_left(self, now: datetime.datetime | None = None) -> float:
        """Return the days until the certificate ends; negative after its end."""
        return (self.ends - (now or _now())).total_seconds() / 86400


def parse_host(text: str) -> str:
    """Parse a host; return a DNS name in lower case or an IP address, as in a certificate.

    Raises:
        ProjectError: The text is neither; a port, a scheme or a wildcard is not allowed.
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
    """Make the federation's certificate authority unless it exists; existing files are never replaced.

    Args:
        key_path: File of the private key: PEM, readable by its owner alone.
        path: File of the self-signed certificate.
        name: Name of the federation.

    Raises:
        ProjectError: The key is damaged, or other users may read it.
        StorageError: A file cannot be written.
    """
    if path.exists():
        return
    key = load_or_create_key(key_path)
    subject = _make_subject(f"{name} certificate authority")
    now = _now()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED_BY)
        .not_valid_after(now + datetime.timedelta(days=AUTHORITY_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_make_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA384())
    )
    write_atomically(path, certificate.public_bytes(Encoding.PEM))


def issue_certificate(
    authority_key: Path, authority: Path, key_path: Path, path: Path, hosts: Sequence[str], days: int
) -> None:
    """Issue the server's certificate, replacing an existing one; the server's key is not replaced.

    Args:
        authority_key: File of the authority's private key, from `make_authority`.
        authority: File of the authority's certificate, from `make_authority`.
        key_path: File of the server's private key; created if missing.
        path: File of the server's certificate.
        hosts: Hosts from `parse_host`; the loopback names are added.
        days: Validity in days; at most until the authority ends.

    Raises:
        ProjectError: A key is damaged, or other users may read it, or the authority ends too soon.
        StorageError: A file cannot be written.
    """
    signer, issuer = load_key(authority_key), _load(authority)
    _check_pair(authority, signer)
    key = load_or_create_key(key_path)
    now = _now()
    ends = now + datetime.timedelta(days=days)
    if ends > issuer.not_valid_after_utc:
        left = (issuer.not_valid_after_utc - now).days
        raise ProjectError(f"the authority {authority} ends in {left} days: ask for no more days than that")
    names = dict.fromkeys([*hosts, *LOOPBACK])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_make_subject(hosts[0]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - _BACKDATED_BY, issuer.not_valid_before_utc))
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([_make_general_name(host) for host in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_make_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, SHA384())
    )
    write_atomically(path, certificate.public_bytes(Encoding.PEM))


def read_certificate(path: Path) -> Certificate:
    """Read a certificate's properties.

    Raises:
        ProjectError: The file is missing or is no certificate.
    """
    certificate = _load(path)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = [str(name.value) for name in names]
    except x509.ExtensionNotFound:
        hosts = []
    return Certificate(
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        tuple(hosts),
        certificate.fingerprint(SHA256()).hex(),
    )


def check_chain(path: Path, key_path: Path, authority: Path) -> None:
    """Check a server's certificate against its key and the authority that the sites trust.

    Args:
        path: File of the server's certificate.
        key_path: File of the server's private key.
        authority: File of the authority's certificate.

    Raises:
        ProjectError: They do not belong together, or a file cannot be read.
    """
    certificate, issuer = _load(path), _load(authority)
    _check_pair(path, load_key(key_path))
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise ProjectError(f"{path} is not by the authority {authority}: no site will trust it") from None


def _check_pair(path: Path, key: EllipticCurvePrivateKey) -> None:
    public = _load(path).public_key()
    if not isinstance(public, EllipticCurvePublicKey) or _encode_der(public) != _encode_der(key.public_key()):
        raise ProjectError(f"{path} and the key beside it do not belong together: put the right pair back")


def _load(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as exc:
        raise ProjectError(f"cannot read the certificate {path}: {exc.strerror}") from exc
    except ValueError as exc:
        raise ProjectError(f"{path} holds no certificate in PEM: is it whole, and the right file?") from exc


def _encode_der(key: EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _make_subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])  # maximum length in RFC 5280


def _make_general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _make_key_usage(*, authority: bool) -> x509.KeyUsage:
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
