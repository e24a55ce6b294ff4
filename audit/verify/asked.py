"""What a verification was asked about: which logs there are, and what a verdict on them is about."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from fedglm.audit.records.checks import Scope
from fedglm.privacy.custody.store import FOLDER, LEDGER
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.signed_log import LOG
from fedglm.run_folder.names import AUDIT, NODES, ROUNDS

SERVER: Final = "server"
"""What a server is called in checks."""

_OR_BUNDLE: Final = "or a bundle of it for the role auditor or regulator"
_OF_RUN: Final = (AUDIT, NODES, ROUNDS)
"""What a run's folder holds, even where its log is not there."""


@dataclass(frozen=True)
class Asked:
    """What is to be verified.

    Attributes:
        folder: A run's, a node's or site's, or a custody folder.
        servers: Runs' folders, or servers' logs, to hold sites to.
        sites: Further folders of sites.
        keys: Those that the owners are known by, from elsewhere.
        called: What folders that are nobody's own, of bundles, are called in checks.
    """

    folder: Path
    servers: Sequence[Path]
    sites: Sequence[Path]
    keys: Sequence[PublicKey]
    called: Mapping[Path, str] = field(default_factory=dict)

    @property
    def own_log(self) -> Path | None:
        """The server's log in the folder."""
        log = log_of(self.folder)
        return log if log.is_file() else None

    @property
    def logs(self) -> list[Path]:
        """Logs of servers, that in the folder first."""
        named = [log_of(place) for place in self.servers]
        return named if self.own_log is None else [self.own_log, *(log for log in named if log != self.own_log)]

    @property
    def custodies(self) -> list[Path]:
        """Custody folders of sites."""
        return [custody for place in (self.folder, *self.sites) for custody in _custodies(place)]

    @property
    def scope(self) -> Scope:
        """What a verdict is about."""
        if not self.custodies:
            return Scope.SERVER
        if self.own_log is None and self.servers:
            return Scope.SITE_AND_SERVER
        is_run = self.own_log is not None or any((self.folder / name).exists() for name in _OF_RUN)
        return Scope.RUN if is_run else Scope.SITE

    def label(self, log: Path) -> str:
        """What the owner of a server's log is called in checks."""
        if len(self.logs) == 1 or log == self.own_log:
            return SERVER
        run = log.parent.parent if log.parent.name == AUDIT else log
        return f"{SERVER} {self.called.get(run, run.name)}"

    def is_about(self, log: Path) -> bool:
        """Whether that log, and the run's files beside it, are what was asked about; else sites are held to it."""
        return log == self.own_log and self.folder.is_dir()

    def stamps(self) -> list[tuple[int, int] | None]:
        """When each file was changed last, and its size."""
        files = [*self.logs, *(custody / name for custody in self.custodies for name in (LOG, LEDGER))]
        return [(file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None for file in files]

    def check(self) -> None:
        """Raise PrivacyError where something that was named is not there: less would look like an answer."""
        if missing := [place for place in self.sites if not _custodies(place)]:
            raise PrivacyError(f"{missing[0]} holds no log of a site: name a site's folder, {_OR_BUNDLE}")
        if self.servers and not self.custodies:
            raise PrivacyError(
                f"{self.folder} holds no log of a site to hold to the server's: name a site's folder, {_OR_BUNDLE}"
            )
        if not self.custodies and self.own_log is None:
            raise PrivacyError(f"{self.folder} holds no log: name the folder of a run, of a node or of a site")
        if missing := [place for place in self.servers if not log_of(place).is_file()]:
            raise PrivacyError(f"{missing[0]} holds no log of a server: name the folder of a run, {_OR_BUNDLE}")


def log_of(run: Path) -> Path:
    """The server's log in a run's folder, or the log itself."""
    return run if run.is_file() else run / AUDIT / LOG


def _custodies(folder: Path) -> list[Path]:
    """Custody folders in a folder."""
    if folder.is_file():
        return []
    own = [folder] if (folder / LEDGER).is_file() else []
    own += [folder / FOLDER] if (folder / FOLDER).is_dir() else []
    return own + sorted(path for path in folder.glob(f"nodes/*/{FOLDER}") if path.is_dir())
