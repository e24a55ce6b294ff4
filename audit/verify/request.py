"""The request of a verification: which logs there are, and what a verdict on them is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedglm.audit.records.checks import Scope
from fedglm.inference.release.manifest import MANIFEST
from fedglm.privacy.custody.store import FOLDER, LEDGER
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.signed_log import LOG
from fedglm.run_folder.names import AUDIT, LIGHT, NODES, ROUNDS

SERVER: Final = "server"
"""Name of a server in checks."""

_OR_BUNDLE: Final = "or a bundle of it for the role auditor or regulator"
_RUN_FILES: Final = (AUDIT, NODES, ROUNDS)
"""Names of which a run's folder has some, even if its log is missing."""


@dataclass(frozen=True)
class VerificationRequest:
    """The records that are to be verified.

    Attributes:
        folder: Folder of a run, a node or a site, or a custody folder.
        servers: Folders of runs, or servers' logs, to compare sites with.
        sites: Further folders of sites.
        keys: Keys that are known to be the owners' from elsewhere.
        labels: Names in checks for folders of unpacked bundles.
    """

    folder: Path
    servers: Sequence[Path]
    sites: Sequence[Path]
    keys: Sequence[PublicKey]
    labels: Mapping[Path, str] = field(default_factory=dict)

    @property
    def own_log(self) -> Path | None:
        """The server's log in the folder; None if there is none."""
        log = get_server_log(self.folder)
        return log if log.is_file() else None

    @property
    def server_logs(self) -> list[Path]:
        """Logs of servers, that in the folder first."""
        named = [get_server_log(place) for place in self.servers]
        return named if self.own_log is None else [self.own_log, *(log for log in named if log != self.own_log)]

    @property
    def custodies(self) -> list[Path]:
        """Custody folders of all sites."""
        return [custody for place in (self.folder, *self.sites) for custody in _find_custodies(place)]

    @property
    def scope(self) -> Scope:
        """Scope of the verdict: whose records are compared with whose."""
        if not self.custodies:
            return Scope.SERVER
        if self.own_log is None and self.servers:
            return Scope.SITE_AND_SERVER
        is_run = self.own_log is not None or any((self.folder / name).exists() for name in _RUN_FILES)
        return Scope.RUN if is_run else Scope.SITE

    def label(self, log: Path) -> str:
        """Return the name in checks of the owner of a server's log."""
        if len(self.server_logs) == 1 or log == self.own_log:
            return SERVER
        run = log.parent.parent if log.parent.name == AUDIT else log
        return f"{SERVER} {self.labels.get(run, run.name)}"

    def is_requested(self, log: Path) -> bool:
        """Return whether a log, and the run's files beside it, are to be verified themselves.

        If not, sites are only compared with it.
        """
        return log == self.own_log and self.folder.is_dir()

    def read_stamps(self) -> list[tuple[int, int] | None]:
        """Return time of the last change in ns, and size in bytes, of each file; None for a missing one."""
        files = [*self.server_logs, *(custody / name for custody in self.custodies for name in (LOG, LEDGER))]
        files += [log.parent.parent / LIGHT / MANIFEST for log in self.server_logs]
        return [(file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None for file in files]

    def check(self) -> None:
        """Check that all that was named is there: a verification of less would look like an answer.

        Raises:
            PrivacyError: A folder that was named has no log.
        """
        if missing := [place for place in self.sites if not _find_custodies(place)]:
            raise PrivacyError(f"{missing[0]} holds no log of a site: name a site's folder, {_OR_BUNDLE}")
        if self.servers and not self.custodies:
            raise PrivacyError(
                f"{self.folder} holds no log of a site to hold to the server's: name a site's folder, {_OR_BUNDLE}"
            )
        if not self.custodies and self.own_log is None:
            raise PrivacyError(f"{self.folder} holds no log: name the folder of a run, of a node or of a site")
        if missing := [place for place in self.servers if not get_server_log(place).is_file()]:
            raise PrivacyError(f"{missing[0]} holds no log of a server: name the folder of a run, {_OR_BUNDLE}")


def get_server_log(run: Path) -> Path:
    """Return the path of the server's log in a run's folder; a log's own path is returned as it is."""
    return run if run.is_file() else run / AUDIT / LOG


def _find_custodies(folder: Path) -> list[Path]:
    """Find the custody folders in a folder."""
    if folder.is_file():
        return []
    own = [folder] if (folder / LEDGER).is_file() else []
    own += [folder / FOLDER] if (folder / FOLDER).is_dir() else []
    return own + sorted(path for path in folder.glob(f"nodes/*/{FOLDER}") if path.is_dir())
