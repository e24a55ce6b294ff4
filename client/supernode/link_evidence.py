"""How a site's node reaches the server, for the site's signed log: protocol and certificates, as seen.

A thread looks, so that the node waits for nothing: again and again until it has seen the server, for a node may well be
started first, and once more whenever a server announces a run, for one that came back may show another certificate.
What was not seen is not written.
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

from fedglm.client.preflight.link_checks import trusting
from fedglm.client.site.folder import Site
from fedglm.client.site.settings import host_and_port
from fedglm.privacy.custody.site_log import CustodyLog
from fedglm.privacy.custody.store import is_initialized
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.signed_log import LOG

_PATIENCE_S: Final = 10.0
_RETRY_S: Final = 5.0
_MAX_RETRY_S: Final = 60.0
_REST_S: Final = 60.0
"""Between two looks that worked: a server that shows ever other certificates must not fill the disk."""


@dataclass(frozen=True)
class Link:
    """What a look has seen.

    Attributes:
        tls: Name of the protocol.
        certificate: SHA-256 (hex) of the server's.
        authority: SHA-256 (hex) of the one that it is by.
    """

    tls: str
    certificate: str
    authority: str


class LinkWatch:
    """Looks at a site's way to its server, and writes down what is new.

    Args:
        site: Whose.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._due = threading.Event()
        self._noted: Link | None = None

    def start(self) -> None:
        """Look in a thread for as long as the process lives."""
        threading.Thread(target=self._watch, name="fedglm-link", daemon=True).start()

    def wake(self) -> None:
        """A server has announced a run: look once more, soon."""
        self._due.set()

    def note(self) -> bool:
        """Look now; what is new is written down.

        Returns:
            Whether what was seen stands in the log.
        """
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, PrivacyError):
            if not is_initialized(self._site.custody_folder):
                return False
            found = see(self._site)
            if found != self._noted:  # to open a log is to verify all of it
                log = CustodyLog(self._site.custody_folder / LOG, self._site.key())
                log.record_link(found.tls, found.certificate, found.authority)
                self._noted = found
            return True
        return False

    def _watch(self) -> None:
        pause = _RETRY_S
        while True:
            self._due.clear()
            if self.note():
                time.sleep(_REST_S)
                self._due.wait()
                pause = _RETRY_S
            else:
                pause = _RETRY_S if self._due.wait(pause) else min(2 * pause, _MAX_RETRY_S)


def see(site: Site) -> Link:
    """Connect to the server, as the node does, and see what it shows.

    Raises:
        OSError: It is away, or not by the site's authority.
        ValueError: The authority's file does not hold one certificate, or nothing was shown.
    """
    (authority,) = load_pem_x509_certificates(site.authority.read_bytes())
    host, port = host_and_port(site.server)
    connection = http.client.HTTPSConnection(host, port, timeout=_PATIENCE_S, context=trusting(site.authority))
    with contextlib.closing(connection):
        connection.connect()
        protocol, certificate = connection.sock.version(), connection.sock.getpeercert(binary_form=True)
    if not protocol or not certificate:
        raise ValueError("the server shows no certificate")
    by = hashlib.sha256(authority.public_bytes(Encoding.DER)).hexdigest()
    return Link(protocol, hashlib.sha256(certificate).hexdigest(), by)
