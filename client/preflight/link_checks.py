"""Checks of what lies between a site and its server: the authority, the server's certificate, the way there, the clock.

Flower's node authentication signs the time. The server takes a signature that is at most 5 seconds ahead of its own
clock and 300 behind (`SYSTEM_TIME_TOLERANCE` and `TIMESTAMP_TOLERANCE` in flwr): a node with another clock is turned
away, and Flower does not say why.
"""

import datetime
import email.utils
import http.client
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256

from fedglm.client.site.folder import Site
from fedglm.client.site.settings import host_and_port
from fedglm.core.findings import Finding, failure, ok, warning

MAX_AHEAD_S, MAX_BEHIND_S = 5.0, 300.0
"""By how much a node's clock may differ from its server's."""

_WARNING_DAYS = 30
_EXPIRED, _NOT_YET, _WRONG_HOST, _WRONG_ADDRESS = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_...
_SET_CLOCK = "set this machine's clock, with NTP if it can be had (timedatectl set-ntp true)"


def check_authority(site: Site, now: datetime.datetime) -> Finding:
    """Whether `ca.pem` is the one certificate that the kit came with, and valid."""
    check, path = "authority", site.authority
    try:
        found = x509.load_pem_x509_certificates(path.read_bytes())
    except OSError as exc:
        return failure(check, f"cannot read {path}: {exc.strerror}", "copy ca.pem from the kit")
    except ValueError:
        found = []
    if len(found) != 1:  # Flower would trust each of them
        return failure(check, f"{path} holds {len(found)} certificates instead of one", "copy ca.pem from the kit")
    (certificate,) = found
    if certificate.fingerprint(SHA256()).hex() != site.kit.authority:
        remedy = "take ca.pem and kit.toml from one kit; if they are, ask the server's operator by telephone"
        return failure(check, f"{path} is not the certificate that kit.toml names", remedy)
    if now < certificate.not_valid_before_utc:
        return failure(
            check, f"{path} is not valid yet: it is from {certificate.not_valid_before_utc:%Y-%m-%d}", _SET_CLOCK
        )
    return _validity(check, "the authority's certificate", certificate.not_valid_after_utc, now, "ask for a new kit")


def check_link(site: Site, patience_s: float) -> list[Finding]:
    """Whether the server is there and is the one that the authority vouches for, and how far the clocks differ."""
    try:
        context = trusting(site.authority)
    except (OSError, ssl.SSLError):
        return [failure("server", "not tried, for want of an authority to trust", "mend the authority first")]
    host, port = host_and_port(site.server)
    connection = http.client.HTTPSConnection(host, port, timeout=patience_s, context=context)
    try:
        connection.connect()
        return list(_look(connection, site.server))
    except ssl.SSLCertVerificationError as exc:
        return [_distrust(site.server, exc)]
    except (OSError, http.client.HTTPException) as exc:
        return [_unreachable(site.server, exc)]
    finally:
        connection.close()


def trusting(authority: Path) -> ssl.SSLContext:
    """TLS that trusts this one authority; `create_default_context` adds no other when it is given one."""
    context = ssl.create_default_context(cafile=str(authority))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _look(connection: http.client.HTTPSConnection, server: str) -> Iterator[Finding]:
    """What a connection that stands has to say."""
    now = datetime.datetime.now(datetime.UTC)
    shown = connection.sock.getpeercert() or {}
    ends = datetime.datetime.fromtimestamp(ssl.cert_time_to_seconds(str(shown["notAfter"])), datetime.UTC)
    remedy = "tell the server's operator: fedglm provision DIR --renew"
    found = _validity("server", f"{server} answers; its certificate", ends, now, remedy)
    yield found
    try:
        connection.request("HEAD", "/")
        date = connection.getresponse().getheader("Date", "")
        reported = email.utils.parsedate_to_datetime(date)
    except (OSError, http.client.HTTPException, ValueError, TypeError):
        yield warning("clock", f"not compared: {server} tells no time", "compare this machine's clock by hand")
        return
    done = datetime.datetime.now(datetime.UTC)
    # The header is cut to whole seconds, and was written at some time between question and answer.
    middle = now + (done - now) / 2
    yield _clock((middle - reported).total_seconds() - 0.5)


def _clock(ahead_s: float) -> Finding:
    words = f"{abs(ahead_s):.0f} s {'ahead of' if ahead_s > 0 else 'behind'} the server's clock"
    if not -MAX_BEHIND_S <= ahead_s <= MAX_AHEAD_S:
        limits = f"it may be {MAX_AHEAD_S:.0f} s ahead and {MAX_BEHIND_S:.0f} behind"
        return failure("clock", f"{words}; {limits}", _SET_CLOCK)
    if not -MAX_BEHIND_S / 5 <= ahead_s <= MAX_AHEAD_S / 2:
        return warning("clock", words, _SET_CLOCK)
    return ok("clock", words)


def _validity(check: str, what: str, ends: datetime.datetime, now: datetime.datetime, remedy: str) -> Finding:
    days = (ends - now).total_seconds() / 86400
    if days < 0:
        return failure(check, f"{what} ended on {ends:%Y-%m-%d}", remedy)
    detail = f"{what} is valid until {ends:%Y-%m-%d}"
    return warning(check, detail, remedy) if days < _WARNING_DAYS else ok(check, detail)


def _distrust(server: str, exc: ssl.SSLCertVerificationError) -> Finding:
    detail, remedy = {
        _EXPIRED: ("has ended", f"tell the server's operator: fedglm provision DIR --renew; or {_SET_CLOCK}"),
        _NOT_YET: ("is not valid yet", _SET_CLOCK),
        _WRONG_HOST: ("is not for this name", "give site.server in site.toml as in the kit, or ask for the name"),
        _WRONG_ADDRESS: ("is not for this address", "give site.server in site.toml as in the kit, or ask for the name"),
    }.get(
        exc.verify_code,
        (
            "is not by the kit's authority",
            "somebody else answers there, or a proxy opens TLS: ask your network's people",
        ),
    )
    return failure("server", f"the certificate of {server} {detail}", remedy)


def _unreachable(server: str, exc: Exception) -> Finding:
    host, port = host_and_port(server)
    if isinstance(exc, socket.gaierror):
        detail, remedy = f"the name {host} is not known here", "look at site.server in site.toml, and at the DNS"
    elif isinstance(exc, ConnectionRefusedError):
        detail, remedy = f"nothing listens at {server}", "ask the server's operator whether it is started, and its port"
    elif isinstance(exc, TimeoutError):
        detail, remedy = f"no answer from {server}", f"let outgoing TCP to {host}, port {port}, through the firewall"
    elif isinstance(exc, ssl.SSLError):
        detail, remedy = f"{server} does not speak TLS", "look at the port in site.server in site.toml"
    else:
        detail, remedy = f"{server} cannot be reached ({getattr(exc, 'strerror', None) or exc})", "look at the network"
    return failure("server", detail, remedy, transient=True)
