"""Checks of the connection of a site to its server: authority, the server's certificate, network, clock.

Flower's node authentication signs the time. The server accepts a signature that is at most 5 seconds ahead of its own
clock and 300 behind (`SYSTEM_TIME_TOLERANCE` and `TIMESTAMP_TOLERANCE` in flwr): a node with another clock is rejected,
and Flower does not report why.
"""

import datetime
import email.utils
import http.client
import ssl
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from fedglm.client.link.faults import SET_CLOCK, LinkFault, explain, find_fault
from fedglm.client.site.folder import Site
from fedglm.client.site.settings import split_address
from fedglm.core.findings import Finding, failure, ok, warning

MAX_AHEAD_S, MAX_BEHIND_S = 5.0, 300.0
"""Maximum differences of a node's clock from its server's, in seconds."""

_WARNING_DAYS = 30
_PERMANENT = (LinkFault.OTHER_HOST, LinkFault.OTHER_AUTHORITY)
"""Faults of the site's own settings, or of somebody who listens in: with the others a node starts, and waits."""


def check_authority(site: Site, now: datetime.datetime) -> Finding:
    """Check that `ca.pem` is the one certificate that `kit.toml` names, and valid."""
    check, path = "authority", site.authority
    try:
        certificates = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as exc:
        return failure(check, f"cannot read {path}: {exc.strerror}", "copy ca.pem from the kit")
    except ValueError:
        certificates = []
    if len(certificates) != 1:  # Flower would trust each of them
        detail = f"{path} holds {len(certificates)} certificates instead of one"
        return failure(check, detail, "copy ca.pem from the kit")
    (certificate,) = certificates
    if certificate.fingerprint(SHA256()).hex() != site.kit.authority:
        remedy = "take ca.pem and kit.toml from one kit; if they are, ask the server's operator by telephone"
        return failure(check, f"{path} is not the certificate that kit.toml names", remedy)
    if now < certificate.not_valid_before_utc:
        return failure(
            check, f"{path} is not valid yet: it is from {certificate.not_valid_before_utc:%Y-%m-%d}", SET_CLOCK
        )
    return _check_validity(
        check, "the authority's certificate", certificate.not_valid_after_utc, now, "ask for a new kit"
    )


def check_link(site: Site, timeout_s: float) -> list[Finding]:
    """Check that the server answers with a certificate of the authority, and compare the clocks.

    Args:
        site: The site.
        timeout_s: Longest time to wait for the server, in seconds.
    """
    try:
        context = make_tls_context(site.authority)
    except OSError:
        return [failure("server", "not tried, for want of an authority to trust", "mend the authority first")]
    host, port = split_address(site.server)
    connection = http.client.HTTPSConnection(host, port, timeout=timeout_s, context=context)
    try:
        connection.connect()
        return list(_check_connection(connection, site.server))
    except (OSError, http.client.HTTPException) as exc:
        return [_describe_failure(site.server, exc)]
    finally:
        connection.close()


def make_tls_context(authority: Path) -> ssl.SSLContext:
    """Make a TLS context that trusts this authority alone: given one, `create_default_context` adds no other.

    Args:
        authority: Path of the authority's certificate.

    Raises:
        OSError: The file cannot be read, or holds no certificate (`ssl.SSLError`).
    """
    context = ssl.create_default_context(cafile=str(authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _check_connection(connection: http.client.HTTPSConnection, server: str) -> Iterator[Finding]:
    """Check the certificate of an open connection, and the clocks."""
    now = datetime.datetime.now(datetime.UTC)
    certificate = connection.sock.getpeercert() or {}
    end = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), datetime.UTC)
    remedy = "tell the server's operator: fedglm provision DIR --renew"
    yield _check_validity("server", f"{server} answers; its certificate", end, now, remedy)
    try:
        connection.request("HEAD", "/")
        date = connection.getresponse().getheader("Date", "")
        reported = email.utils.parsedate_to_datetime(date)
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        yield warning("clock", f"not compared: {server} tells no time", "compare this machine's clock by hand")
        return
    received = datetime.datetime.now(datetime.UTC)
    # The header is truncated to whole seconds, and was written at some time between request and response.
    middle = now + (received - now) / 2
    yield _check_clock((middle - reported).total_seconds() - 0.5)


def _check_clock(ahead_s: float) -> Finding:
    detail = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's clock"
    if not -MAX_BEHIND_S <= ahead_s <= MAX_AHEAD_S:
        limits = f"it may be {MAX_AHEAD_S:.0f} s ahead and {MAX_BEHIND_S:.0f} behind"
        return failure("clock", f"{detail}; {limits}", SET_CLOCK)
    if not -MAX_BEHIND_S / 5 <= ahead_s <= MAX_AHEAD_S / 2:
        return warning("clock", detail, SET_CLOCK)
    return ok("clock", detail)


def _check_validity(check: str, subject: str, end: datetime.datetime, now: datetime.datetime, remedy: str) -> Finding:
    days = (end - now).total_seconds() / 86400
    if days < 0:
        return failure(check, f"{subject} ended on {end:%Y-%m-%d}", remedy)
    detail = f"{subject} is valid until {end:%Y-%m-%d}"
    return warning(check, detail, remedy) if days < _WARNING_DAYS else ok(check, detail)


def _describe_failure(server: str, error: Exception) -> Finding:
    fault = find_fault(error)
    detail, remedy = explain(fault, server)
    return failure("server", detail, remedy, transient=fault not in _PERMANENT)
