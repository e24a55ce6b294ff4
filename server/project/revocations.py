"""Revocations while a run goes on: sites that are no longer enrolled with the keys that they had at its start."""

import logging
from collections.abc import Mapping

from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.server.errors import ProjectError
from fedglm.server.project.enrolment import read_enrolled_sites
from fedglm.server.project.folder import Project

LOG = logging.getLogger(__name__)


class Revocations:
    """Finds revoked sites of a run, as `fedglm server revoke` or `enrol --replace` leave them in the project's folder.

    Args:
        project: Project of the server.
        sites: Signing keys of the run's sites by name.
    """

    def __init__(self, project: Project, sites: Mapping[str, PublicKey]) -> None:
        self._project, self._sites = project, dict(sites)
        self._modified: tuple[int, ...] = ()
        self._revoked: frozenset[str] = frozenset()

    def find(self) -> frozenset[str]:
        """Return the names of the sites whose keys were revoked; the project's files are read where they changed.

        While a file cannot be read, the sites found so far are returned, and the server's log says why.
        """
        folders = (self._project.enrolled_folder, self._project.revoked_folder)
        try:
            modified = tuple(folder.stat().st_mtime_ns for folder in folders)
            if modified == self._modified:
                return self._revoked
            enrolled = read_enrolled_sites(self._project)
        except (OSError, PrivacyError, ProjectError) as exc:
            LOG.warning("whether a site was revoked cannot be read: %s", exc)
            return self._revoked
        gone = {name for name, key in self._sites.items() if name not in enrolled or enrolled[name].signing != key}
        # A key that was revoked is never taken again, so that a site once found stays one.
        self._revoked, self._modified = self._revoked | gone, modified
        return self._revoked
