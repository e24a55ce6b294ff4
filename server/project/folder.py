"""Project folder of a server for real sites: its keys and certificates, its sites' startup kits, its runs.

    project.toml         name, hosts, ports; nothing secret
    ca/                  ca.key (0600), ca.pem: the authority that the sites trust
    server/              server.key (0600), server.pem: TLS;  signing.key (0600): signs run plans
    kits/SITE/           startup kit of a site, all of it public, and kits/SITE.zip
    enrolled/SITE.pub    public keys that the site sent;  revoked/ public keys that were revoked
    flwr/                Flower's home: address and certificate of the SuperLink, for its commands
    state/               the SuperLink's database, pid file and log
    runs/NAME/           run folders

Making a project again creates what is missing, and replaces no key.
"""

import os
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import tomli_w

from fedglm.core.files import storage_errors, write_atomically
from fedglm.privacy.keys.signing import SigningKey
from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import issue_certificate, make_authority, read_certificate
from fedglm.server.project.settings import ProjectSettings, parse_settings

CONNECTION = "fedglm"
"""Name of the SuperLink in Flower's configuration."""

PROJECT = "FEDGLM_PROJECT"
"""Environment variable with the project's folder, in the SuperLink and its child processes."""

DEFAULT_DAYS = 365

_SETTINGS = "project.toml"
_HEADER = "# A federation's server. Change it with fedglm provision, which renews certificate and kits with it.\n"


@dataclass(frozen=True)
class Project:
    """An opened project folder.

    Attributes:
        folder: Absolute path.
        settings: Content of `project.toml`.
    """

    folder: Path
    settings: ProjectSettings

    @classmethod
    def open(cls, folder: Path) -> "Project":
        """Open an existing project.

        Raises:
            ProjectError: There is none, or its settings are invalid.
        """
        path = folder.absolute() / _SETTINGS
        try:
            values = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise ProjectError(
                f"{folder} is no project: name its folder with -C, or make one with fedglm provision {folder} --host "
                "NAME"
            ) from None
        except (OSError, ValueError) as exc:
            raise ProjectError(f"cannot read {path}: {exc}") from exc
        return cls(folder.absolute(), parse_settings(values, origin=str(path)))

    @classmethod
    def make(
        cls, folder: Path, settings: ProjectSettings, *, days: int = DEFAULT_DAYS, renew: bool = False
    ) -> "Project":
        """Make the project's folder, or what is missing of it, such as after a process that was killed.

        Args:
            folder: New or empty folder, or an existing project.
            settings: New settings of the project; if they name other hosts, a new certificate is issued.
            days: Validity in days of a certificate that is issued.
            renew: Issue a new certificate in any case.

        Raises:
            ProjectError: The folder has other content, or a key is damaged.
            StorageError: A file cannot be written.
        """
        project = cls(folder.absolute(), settings)
        with storage_errors(project.folder):
            project.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not (project.folder / _SETTINGS).exists() and any(project.folder.iterdir()):
                raise ProjectError(f"{folder} holds something else already: name a new folder")
        write_atomically(project.folder / _SETTINGS, _HEADER + tomli_w.dumps(settings.model_dump(mode="json")))
        with storage_errors(project.folder):
            for path in (project.folder, *project._folders):
                path.mkdir(exist_ok=True, mode=0o700)
                path.chmod(0o700)  # folders from an earlier version, or made by the user before
        make_authority(project.authority_key, project.authority, settings.name)
        if renew or not project._has_certificate():
            project.issue(days)
        if not project.signing_key_path.exists():
            SigningKey.create(project.signing_key_path)
        project.write_flower_settings()
        return project

    @property
    def _folders(self) -> tuple[Path, ...]:
        """Subfolders, accessible by their owner alone."""
        secret = self.authority.parent, self.certificate.parent, self.state, self.runs, self.flower_home
        return (*secret, self.kits, self.enrolled_folder, self.revoked_folder)

    def _has_certificate(self) -> bool:
        return self.certificate.exists() and set(self.settings.hosts) <= set(read_certificate(self.certificate).hosts)

    def issue(self, days: int) -> None:
        """Issue a new certificate for the server, by the same authority and for the same key.

        Raises:
            ProjectError: As `issue_certificate`.
            StorageError: A file cannot be written.
        """
        issue_certificate(
            self.authority_key, self.authority, self.server_key, self.certificate, self.settings.hosts, days
        )

    def write_flower_settings(self) -> None:
        """Write the SuperLink's address for Flower's commands; its paths are absolute, and the folder may have moved.

        Raises:
            StorageError: The file cannot be written.
        """
        connection = {"address": self.settings.control_address, "root-certificates": str(self.authority)}
        text = tomli_w.dumps({"superlink": {"default": CONNECTION, CONNECTION: connection}})
        write_atomically(self.flower_home / "config.toml", text)

    @property
    def authority_key(self) -> Path:
        """The private key of the certificate authority."""
        return self.folder / "ca" / "ca.key"

    @property
    def authority(self) -> Path:
        """The certificate that the sites trust."""
        return self.folder / "ca" / "ca.pem"

    @property
    def server_key(self) -> Path:
        """The private key of the server's certificate."""
        return self.folder / "server" / "server.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate."""
        return self.folder / "server" / "server.pem"

    @property
    def signing_key_path(self) -> Path:
        """The private key that signs run plans."""
        return self.folder / "server" / "signing.key"

    @cached_property
    def signing_key(self) -> SigningKey:
        """The private key that signs run plans, loaded.

        Raises:
            PrivacyError: The key is missing, damaged, or other users may read it.
        """
        return SigningKey.load(self.signing_key_path)

    @property
    def kits(self) -> Path:
        """Folder of the sites' startup kits."""
        return self.folder / "kits"

    @property
    def enrolled_folder(self) -> Path:
        """Folder of the enrolled sites' public keys."""
        return self.folder / "enrolled"

    @property
    def revoked_folder(self) -> Path:
        """Folder of revoked public keys."""
        return self.folder / "revoked"

    @property
    def flower_home(self) -> Path:
        """Flower's home folder, with its configuration."""
        return self.folder / "flwr"

    @property
    def state(self) -> Path:
        """Folder of the SuperLink's state."""
        return self.folder / "state"

    @property
    def database(self) -> Path:
        """The SuperLink's database."""
        return self.state / "superlink.db"

    @property
    def runs(self) -> Path:
        """Folder of the run folders."""
        return self.folder / "runs"


def open_from_environment() -> Project:
    """Open the project in the environment variable, in the SuperLink and its child processes.

    Raises:
        ProjectError: The variable is not set, or the project cannot be read.
    """
    folder = os.environ.get(PROJECT)
    if not folder:
        raise ProjectError(f"{PROJECT} is not set: start the SuperLink with fedglm server start")
    return Project.open(Path(folder))


def is_project(folder: Path) -> bool:
    """Return whether there is a project in the folder."""
    return (folder / _SETTINGS).exists()
