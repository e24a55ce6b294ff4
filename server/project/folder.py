"""The folder of a server that real sites take part with: its keys and certificates, the kits of its sites, its runs.

    project.toml         name, hosts, ports; nothing secret
    ca/                  ca.key (0600), ca.pem: the authority that the sites trust
    server/              server.key (0600), server.pem: TLS;  signing.key (0600): signs run plans
    kits/SITE/           what a site gets, public all of it, and kits/SITE.zip
    enrolled/SITE.pub    what came back from the site;  revoked/ what counts no longer
    flwr/                Flower's own folder: how its commands find the SuperLink
    state/               the SuperLink's database, pid file and log
    runs/NAME/           run folders

Making it again makes what is missing, and replaces no key.
"""

import os
import tomllib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedglm.core.files import storage_errors, write_atomically
from fedglm.core.validation_errors import explain
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.keys.site_identity import checked_site_name
from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import checked_host, issue_certificate, make_authority, read_certificate

CONNECTION = "fedglm"
"""Name of the SuperLink in Flower's settings."""

PROJECT = "FEDGLM_PROJECT"
"""Environment variable that names the project's folder, in the SuperLink and in all that it starts."""

DEFAULT_PORT = 8443
DEFAULT_DAYS = 365
MAX_DAYS = 3650

_SETTINGS = "project.toml"
_HEAD = "# A federation's server. Change it with fedglm provision, which renews certificate and kits with it.\n"


def _checked_address(text: str) -> str:
    host = checked_host(text)
    if not any(mark in host for mark in ".:"):
        raise ProjectError(f"listen = {text!r}: give an IP address of this machine, or 0.0.0.0 for all")
    return host


class ProjectSettings(BaseModel):
    """`project.toml`.

    Attributes:
        name: Of the federation.
        hosts: DNS names and IP addresses under which the sites reach the server; the first one stands in the kits.
        port: Where the sites reach it.
        control_port: Where this machine alone reaches it, to start runs and register sites.
        listen: Address of this machine that the sites' port is opened on; 0.0.0.0 for all.
        max_database_bytes: How large the SuperLink's database may become; messages lie there until they are taken up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(checked_site_name)]
    hosts: tuple[Annotated[str, AfterValidator(checked_host)], ...] = Field(min_length=1, max_length=100)
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)
    control_port: int = Field(default=DEFAULT_PORT + 1, ge=1, le=65535)
    listen: Annotated[str, AfterValidator(_checked_address)] = "0.0.0.0"  # noqa: S104 - the sites are elsewhere
    max_database_bytes: int = Field(default=4 * 2**30, ge=64 * 2**20)

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.port == self.control_port:
            raise ValueError(f"port and control_port are both {self.port}: the sites must not reach the latter")
        return self

    @property
    def address(self) -> str:
        """Where a site finds the server: HOST:PORT."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def control_address(self) -> str:
        """Where this machine finds it: 127.0.0.1:PORT."""
        return f"127.0.0.1:{self.control_port}"


@dataclass(frozen=True)
class Project:
    """The folder, opened.

    Attributes:
        folder: Absolute path.
        settings: Content of `project.toml`.
    """

    folder: Path
    settings: ProjectSettings

    @classmethod
    def open(cls, folder: Path) -> "Project":
        """Read a project that was made before.

        Raises:
            ProjectError: There is none, or its settings are wrong.
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
        return cls(folder.absolute(), checked_settings(values, origin=str(path)))

    @classmethod
    def make(
        cls, folder: Path, settings: ProjectSettings, *, days: int = DEFAULT_DAYS, renew: bool = False
    ) -> "Project":
        """Make the project's folder, or what is missing of it; what a killed process has made of it is taken up.

        Args:
            folder: New, empty, or a project.
            settings: Its settings from now on; if the hosts are others, the certificate is issued anew.
            days: Validity of a certificate that is issued.
            renew: Issue a new certificate in any case.

        Raises:
            ProjectError: The folder holds something else, or a key is damaged.
            StorageError: A file cannot be written.
        """
        project = cls(folder.absolute(), settings)
        with storage_errors(project.folder):
            project.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not (project.folder / _SETTINGS).exists() and any(project.folder.iterdir()):
                raise ProjectError(f"{folder} holds something else already: name a new folder")
        write_atomically(project.folder / _SETTINGS, _HEAD + tomli_w.dumps(settings.model_dump(mode="json")))
        with storage_errors(project.folder):
            for path in (project.folder, *project._folders):
                path.mkdir(exist_ok=True, mode=0o700)
                path.chmod(0o700)  # one that an earlier version made, or somebody before it
        make_authority(project.authority_key, project.authority, settings.name)
        if renew or not project._certificate_serves():
            project.issue(days)
        if not project.signing_key_path.exists():
            SigningKey.create(project.signing_key_path)
        project.write_flower_settings()
        return project

    @property
    def _folders(self) -> tuple[Path, ...]:
        """What lies in the folder; for its owner alone."""
        secret = self.authority.parent, self.certificate.parent, self.state, self.runs, self.flower_home
        return (*secret, self.kits, self.enrolled_folder, self.revoked_folder)

    def _certificate_serves(self) -> bool:
        return self.certificate.exists() and set(self.settings.hosts) <= set(read_certificate(self.certificate).hosts)

    def issue(self, days: int) -> None:
        """Issue the server's certificate anew, by the same authority and for the same key.

        Raises:
            ProjectError: See `issue_certificate`.
            StorageError: A file cannot be written.
        """
        issue_certificate(
            self.authority_key, self.authority, self.server_key, self.certificate, self.settings.hosts, days
        )

    def write_flower_settings(self) -> None:
        """Tell Flower's commands where the SuperLink is; the paths in it are absolute, and a folder may have moved.

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
        """What signs run plans.

        Raises:
            PrivacyError: The key is missing, damaged, or others may read it.
        """
        return SigningKey.load(self.signing_key_path)

    @property
    def kits(self) -> Path:
        """Folder of the sites' kits."""
        return self.folder / "kits"

    @property
    def enrolled_folder(self) -> Path:
        """Folder of what the sites that take part handed over."""
        return self.folder / "enrolled"

    @property
    def revoked_folder(self) -> Path:
        """Folder of what counts no longer."""
        return self.folder / "revoked"

    @property
    def flower_home(self) -> Path:
        """Flower's folder."""
        return self.folder / "flwr"

    @property
    def state(self) -> Path:
        """Folder of what the SuperLink keeps."""
        return self.folder / "state"

    @property
    def database(self) -> Path:
        """The SuperLink's database."""
        return self.state / "superlink.db"

    @property
    def runs(self) -> Path:
        """Folder of the run folders."""
        return self.folder / "runs"


def opened_from_environment() -> Project:
    """The project that the environment names, in the SuperLink and in all that it starts.

    Raises:
        ProjectError: It names none, or none that can be read.
    """
    named = os.environ.get(PROJECT)
    if not named:
        raise ProjectError(f"{PROJECT} is not set: start the SuperLink with fedglm server start")
    return Project.open(Path(named))


def is_project(folder: Path) -> bool:
    """Whether there is a project in the folder."""
    return (folder / _SETTINGS).exists()


def checked_settings(values: dict[str, Any], *, origin: str = "the project") -> ProjectSettings:
    """The settings in `values`, as a `project.toml` or a command's options give them.

    Raises:
        ProjectError: A key or value is wrong; near names are listed.
        PrivacyError: The name cannot name a federation.
    """
    try:
        return ProjectSettings.model_validate(values)
    except ValidationError as exc:
        raise ProjectError(f"{origin}: {explain(exc, ProjectSettings, show=lambda _: None)}") from exc
