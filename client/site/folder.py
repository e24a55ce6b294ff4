"""The folder of a site in a deployment.

kit.toml, ca.pem    startup kit: federation, server and certificate authority; from the server's operator
site.toml           source of the records, and how the node runs
flower.key          authenticates the node at the SuperLink
custody/            policy, ledger and signing key: see `privacy.custody`
state/              the node's state, its log and its pid file; light/ holds the newest light release,
                    models/ the last run's model and the one before
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fedglm.client.light.shelf import LightShelf
from fedglm.client.site.open_custody import open_custody
from fedglm.client.site.settings import (
    SITE_FILE,
    Kit,
    SiteError,
    SiteSettings,
    read_kit_file,
    read_site_file,
    resolve_path,
)
from fedglm.privacy.custody.store import KEY, Custody
from fedglm.privacy.keys.signing import PublicKey, SigningKey
from fedglm.privacy.keys.vault import Vault

if TYPE_CHECKING:
    from fedglm.client.models.shelf import ModelShelf


@dataclass(frozen=True)
class Site:
    """The folder of a site, read and checked.

    Attributes:
        folder: Absolute path.
        settings: Content of `site.toml`.
        kit: Content of `kit.toml`.
    """

    folder: Path
    settings: SiteSettings
    kit: Kit

    @property
    def name(self) -> str:
        """Name of the site in the federation."""
        return self.kit.site

    @property
    def server(self) -> str:
        """Address of the server as HOST:PORT."""
        return self.settings.site.server or self.kit.server

    @property
    def authority(self) -> Path:
        """Path of the certificate of the authority that issued the server's certificate."""
        return self.folder / "ca.pem"

    @property
    def flower_key(self) -> Path:
        """Path of the key that authenticates the node at the SuperLink."""
        return self.folder / "flower.key"

    @property
    def state(self) -> Path:
        """Folder of the node's state, log and pid file."""
        return self.resolve(self.settings.site.state)

    @property
    def home(self) -> Path:
        """Folder of the node: it holds the pinned plan of the run, and a folder of state for each model."""
        return self.state / "node"

    @property
    def custody_folder(self) -> Path:
        """Folder of policy, ledger and signing key."""
        return self.resolve(self.settings.site.custody)

    @property
    def signing_key(self) -> Path:
        """Path of the key that signs policy and updates."""
        return self.custody_folder / KEY

    @property
    def source(self) -> str:
        """Path of the site's records, or the name of built-in data.

        Raises:
            SiteError: `site.toml` names no source yet.
        """
        data = self.settings.data
        if data.source is None:
            raise SiteError(f"{self.folder / SITE_FILE} does not say yet where the records are: give source in [data]")
        return data.source if data.is_builtin else str(self.resolve(data.source))

    def resolve(self, text: str) -> Path:
        """Resolve a path in `site.toml`, which is relative to the site's folder and may begin with ~."""
        return resolve_path(self.folder, text)

    def light_shelf(self) -> LightShelf:
        """Return the light releases that the node holds, signed by the server of the startup kit."""
        return LightShelf(self.state / "light", [PublicKey.from_hex(self.kit.signing)])

    def model_shelf(self) -> "ModelShelf":
        """Return the models of runs that the node holds, signed by the server of the startup kit."""
        from fedglm.client.models.shelf import ModelShelf  # numba and safetensors come with it

        return ModelShelf(self.state / "models", [PublicKey.from_hex(self.kit.signing)])

    def vault(self) -> Vault | None:
        """Load the vault that encrypts the node's state; None where `site.toml` names no key for it.

        Raises:
            PrivacyError: The key is missing, damaged, others may read it, or its passphrase is missing or wrong.
        """
        return self._vault

    def key(self) -> SigningKey:
        """Load the key that signs all messages of the site.

        Raises:
            PrivacyError: The key is missing, damaged, or others than its owner may read it.
        """
        return SigningKey.load(self.signing_key)

    def custody(self) -> Custody:
        """Open and verify policy, ledger and log, once per site: the commitment to the records takes time.

        Raises:
            SiteError: `site.toml` names no source yet.
            PrivacyError: Policy or ledger is missing, damaged or not signed by the site.
        """
        return self._custody

    @cached_property
    def _vault(self) -> Vault | None:
        state_key = self.settings.site.state_key
        return None if state_key is None else Vault.load(self.resolve(state_key))

    @cached_property
    def _custody(self) -> Custody:
        data = self.settings.data
        return open_custody(self.custody_folder, self.source, unit=data.unit, faults=data.make_row_faults())


def open_site(folder: Path) -> Site:
    """Read the folder of a site.

    Raises:
        SiteError: A file is missing or invalid; the message names it and the remedy.
    """
    kit, settings = read_kit_file(folder), read_site_file(folder)
    if settings.site.name not in (None, kit.site):
        raise SiteError(
            f"{folder}: site.toml is of the site {settings.site.name}, kit.toml of {kit.site}: unpack the right kit"
        )
    return Site(folder.absolute(), settings, kit)
