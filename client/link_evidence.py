"""How a site's node reaches the server, for the site's signed log: protocol and certificate, as seen at the start."""

import contextlib
import hashlib
import http.client

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_certificate

from fedglm.client.preflight_link import trusting
from fedglm.client.site_folder import Site
from fedglm.client.site_settings import host_and_port
from fedglm.privacy.custody import is_established
from fedglm.privacy.custody_log import CustodyLog
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.signed_log import LOG

_PATIENCE_S = 10.0


def note_link(site: Site) -> bool:
    """Look at the server's TLS, and write down what it is; a server that is away is no reason not to start.

    Returns:
        Whether it is written down.
    """
    with contextlib.suppress(OSError, ValueError, http.client.HTTPException, PrivacyError):
        if not is_established(site.custody_folder):
            return False
        host, port = host_and_port(site.server)
        context = trusting(site.authority)
        connection = http.client.HTTPSConnection(host, port, timeout=_PATIENCE_S, context=context)
        with contextlib.closing(connection):
            connection.connect()
            protocol, certificate = connection.sock.version(), connection.sock.getpeercert(binary_form=True)
        authority = load_pem_x509_certificate(site.authority.read_bytes()).public_bytes(Encoding.DER)
        log = CustodyLog(site.custody_folder / LOG, site.key())
        log.linked(str(protocol), hashlib.sha256(certificate or b"").hexdigest(), hashlib.sha256(authority).hexdigest())
        return True
    return False
