"""Faults of the link from a node to its server: one code for each kind, found from an exception's types alone.

Any fault may end by itself, because somebody mends it elsewhere; a node therefore tries again for ever. The code says
which kind it is, to people, to metrics and to the site's log; the texts of libraries are for none of them.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from enum import StrEnum
from typing import Final, NamedTuple


class LinkFault(StrEnum):
    """Why a server cannot be reached, or is not taken for it."""

    UNKNOWN_NAME = "unknown_name"
    REFUSED = "refused"
    NO_ANSWER = "no_answer"
    BROKEN = "broken"
    NO_TLS = "no_tls"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    OTHER_HOST = "other_host"
    OTHER_AUTHORITY = "other_authority"
    PROXY = "proxy"
    OTHER_SERVICE = "other_service"
    NOT_ADMITTED = "not_admitted"
    UNAVAILABLE = "unavailable"


class Explanation(NamedTuple):
    """A fault in words.

    Attributes:
        detail: What is the case.
        remedy: What the site's engineer can do.
    """

    detail: str
    remedy: str


SET_CLOCK: Final = "set this machine's clock, with NTP if it can be had (timedatectl set-ntp true)"

_OPENSSL_CODES: Final = {
    10: LinkFault.EXPIRED,  # X509_V_ERR_CERT_HAS_EXPIRED
    9: LinkFault.NOT_YET_VALID,  # X509_V_ERR_CERT_NOT_YET_VALID
    62: LinkFault.OTHER_HOST,  # X509_V_ERR_HOSTNAME_MISMATCH
    64: LinkFault.OTHER_HOST,  # X509_V_ERR_IP_ADDRESS_MISMATCH
}
_UNREACHABLE: Final = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.EHOSTDOWN})
_CLOSED: Final = frozenset({ssl.SSL_ERROR_EOF, ssl.SSL_ERROR_SYSCALL, ssl.SSL_ERROR_ZERO_RETURN})


def find_fault(error: BaseException) -> LinkFault:
    """Return the kind of a failed connection, from the exception or those that it was raised from."""
    for cause in _list_causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _OPENSSL_CODES.get(cause.verify_code, LinkFault.OTHER_AUTHORITY)
        if isinstance(cause, ssl.SSLError):
            return LinkFault.BROKEN if cause.errno in _CLOSED else LinkFault.NO_TLS
        if isinstance(cause, socket.gaierror):
            return LinkFault.UNKNOWN_NAME
        if isinstance(cause, ConnectionRefusedError):
            return LinkFault.REFUSED
        if isinstance(cause, TimeoutError) or (isinstance(cause, OSError) and cause.errno in _UNREACHABLE):
            return LinkFault.NO_ANSWER
    return LinkFault.BROKEN


def explain(fault: LinkFault, server: str) -> Explanation:
    """Return the words for a fault.

    Args:
        fault: The fault.
        server: Address of the server, HOST:PORT.
    """
    host, _, port = server.rpartition(":")
    return {
        LinkFault.UNKNOWN_NAME: Explanation(
            f"the name {host} is not known here", "look at site.server in site.toml, and at the DNS"
        ),
        LinkFault.REFUSED: Explanation(
            f"nothing listens at {server}", "ask the server's operator whether it is started, and its port"
        ),
        LinkFault.NO_ANSWER: Explanation(
            f"no answer from {server}", f"let outgoing TCP to {host}, port {port}, through the firewall"
        ),
        LinkFault.BROKEN: Explanation(
            f"{server} accepts the connection and breaks it", "ask the server's operator whether it is started"
        ),
        LinkFault.NO_TLS: Explanation(f"{server} does not speak TLS", "look at the port in site.server in site.toml"),
        LinkFault.EXPIRED: Explanation(
            f"the certificate of {server} has ended",
            f"tell the server's operator: fedglm provision DIR --renew; or {SET_CLOCK}",
        ),
        LinkFault.NOT_YET_VALID: Explanation(f"the certificate of {server} is not valid yet", SET_CLOCK),
        LinkFault.OTHER_HOST: Explanation(
            f"the certificate of {server} is not for this name or address",
            "give site.server in site.toml as in the kit, or ask for the name",
        ),
        LinkFault.OTHER_AUTHORITY: Explanation(
            f"the certificate of {server} is not by the kit's authority",
            "somebody else answers there, or a proxy opens TLS: ask your network's people",
        ),
        LinkFault.PROXY: Explanation(
            f"the proxy of this machine gives no way to {server}",
            "look at HTTPS_PROXY and NO_PROXY in the node's environment, or ask your network's people",
        ),
        LinkFault.OTHER_SERVICE: Explanation(
            f"{server} answers, but not as fedglm's server does",
            "look at the port in site.server in site.toml, and at what stands between: a proxy, another service",
        ),
        LinkFault.NOT_ADMITTED: Explanation(
            f"{server} does not take this node's key",
            "compare the clocks with fedglm client check; or ask the server's operator whether the site is enrolled",
        ),
        LinkFault.UNAVAILABLE: Explanation(
            f"{server} answers that it is not available", "wait; if it lasts, tell the server's operator"
        ),
    }[fault]


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    """List an exception and those that it was raised from or while handling, the innermost first."""
    chain: list[BaseException] = []
    known: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in known:
        known.add(id(at))
        chain.append(at)
        at = at.__cause__ or at.__context__
    return reversed(chain)
