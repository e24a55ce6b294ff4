"""Renews the server's certificate before its end, and takes a new one into use without a restart.

Sites trust the authority and not the certificate, so that nothing is to be done there. Where the authority's key is
kept elsewhere, somebody must bring it: a warning says so, from a month before the end.
"""

import asyncio
import logging
import ssl
from typing import Final

from fedglm.core.errors import FedglmError
from fedglm.server.project.certificates import WARNING_DAYS, check_chain, read_certificate
from fedglm.server.project.folder import DEFAULT_DAYS, Project

CHECK_S: Final = 3600.0
"""Seconds between two checks of the certificate."""

_log = logging.getLogger("uvicorn.error")


class CertificateRenewal:
    """Keeps a TLS context at the newest certificate of a project.

    Args:
        project: The project.
        context: TLS context of the listeners, which has loaded the project's certificate.
    """

    def __init__(self, project: Project, context: ssl.SSLContext) -> None:
        self._project, self._context = project, context
        self._loaded = read_certificate(project.certificate).sha256

    async def run(self) -> None:
        """Check at once and every hour, until cancelled; whatever fails is logged, and tried again."""
        while True:
            try:
                await asyncio.to_thread(self.check)
            except (FedglmError, OSError) as exc:
                _log.error("the certificate cannot be looked after: %s", exc)
            await asyncio.sleep(CHECK_S)

    def check(self) -> None:
        """Issue a new certificate where the last month of the old one has begun, and load one that is new.

        Raises:
            ProjectError: A file is missing, damaged, or does not belong to the others; the old one stays in use.
            StorageError: The new certificate cannot be written.
        """
        project = self._project
        certificate = read_certificate(project.certificate)
        if certificate.days_left() < WARNING_DAYS:
            if project.authority_key.exists():
                days = min(DEFAULT_DAYS, int(read_certificate(project.authority).days_left()))
                if days > certificate.days_left():
                    project.issue(days)
                    certificate = read_certificate(project.certificate)
                    _log.info("the server's certificate is renewed: it ends on %s", f"{certificate.ends:%Y-%m-%d}")
            else:
                _log.warning(
                    "the server's certificate ends on %s, and %s is not here to renew it: bring it, or run fedglm "
                    "provision --renew where it is",
                    f"{certificate.ends:%Y-%m-%d}",
                    project.authority_key,
                )
        if certificate.sha256 != self._loaded:
            check_chain(project.certificate, project.server_key, project.authority)
            try:
                self._context.load_cert_chain(project.certificate, project.server_key)
            except ssl.SSLError as exc:  # `check_chain` has read both
                raise FedglmError(f"{project.certificate} cannot be used: {exc.reason}") from exc
            self._loaded = certificate.sha256
            _log.info("the server's certificate is now the one that ends on %s", f"{certificate.ends:%Y-%m-%d}")
