"""Evidence of the link from a site's node to the server, for the site's signed log: TLS protocol and certificates.

A thread connects to the server, so that the node does not wait for it: again and again until it has reached the server,
because a node may be started first, and once more whenever a server announces a run, because a restarted server may
present another certificate. Only observations are logged.
"""

import contextlib
import hashlib
import http.client
import threading
import time
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificates

from fedglm.client.preflight.link_checks import make_tls_context
from fedglm.client.site.folder import Site
from fedglm.client.site.settings import split_address
from fedglm.privacy.custody.site_log import CustodyLog
from fedglm.privacy.custody.store import is_established
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.signed_log import LOG

_TIMEOUT_S: Final = 10.0
_RETRY_S: Final = 5.0
_MAX_RETRY_S: Final = 60.0
_MIN_INTERVAL_S: Final = 60.0
"""Minimum time between two observations: a server that presents ever new certificates must not fill the disk."""


@dataclass(frozen=True)
class ObservedLink:
    """Protocol and certificates of a connection to the server.

    Attributes:
        tls: Name of the TLS protocol version.
        certificate: SHA-256 (hex) of the server's certificate, DER-encoded.
        authority: SHA-256 (hex) of the certificate of the authority that issued it, DER-encoded.
    """

    tls: str
    certificate: str
    authority: str


class LinkWatcher:
    """Observes a site's link to its server, and logs changes.

    Args:
        site: The site.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._requested = threading.Event()
        self._last_logged: ObservedLink | None = None

    def start(self) -> None:
        """Start a thread that observes the link until the process ends."""
        threading.Thread(target=self._watch, name="fedglm-link", daemon=True).start()

    def request_check(self) -> None:
        """Request another observation soon; does not wait. Call it when a server has announced a run."""
        self._requested.set()

    def record_link(self) -> bool:
        """Observe the link now, and log it where it differs from the last observation.

        Returns:
            Whether the link was observed and is in the log.
        """
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, PrivacyError):
            if not is_established(self._site.custody_folder):
                return False
            link = observe_link(self._site)
            if link != self._last_logged:  # opening the log verifies all of it, which takes time
                log = CustodyLog(self._site.custody_folder / LOG, self._site.key())
                log.linked(link.tls, link.certificate, link.authority)
                self._last_logged = link
            return True
        return False

    def _watch(self) -> None:
        pause = _RETRY_S
        while True:
            self._requested.clear()
            if self.record_link():
                time.sleep(_MIN_INTERVAL_S)
                self._requested.wait()
                pause = _RETRY_S
            else:
                pause = _RETRY_S if self._requested.wait(pause) else min(2 * pause, _MAX_RETRY_S)


def observe_link(site: Site) -> ObservedLink:
    """Connect to the server as the node does, and return protocol and certificates.

    Raises:
        OSError: The server cannot be reached, or its certificate is not of the site's authority.
        ValueError: The authority's file does not hold exactly one certificate, or the server presented none.
    """
    (authority,) = load_pem_x509_certificates(site.authority.read_bytes())
    host, port = split_address(site.server)
    connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=make_tls_context(site.authority))
    with contextlib.closing(connection):
        connection.connect()
        protocol, certificate = connection.sock.version(), connection.sock.getpeercert(binary_form=True)
    if not protocol or not certificate:
        raise ValueError("the server shows no certificate")
    authority_sha256 = hashlib.sha256(authority.public_bytes(Encoding.DER)).hexdigest()
    return ObservedLink(protocol, hashlib.sha256(certificate).hexdigest(), authority_sha256)
