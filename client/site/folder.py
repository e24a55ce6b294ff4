"""A site that really takes part: its folder.

kit.toml, ca.pem    whom it has to do with; from the server's operator
site.toml           where its records are, and how its node runs
flower.key          signs the node on at the SuperLink
custody/            policy, ledger and signing key: see `privacy.custody`
state/              what the node remembers, its log and its pid file
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fedglm.client.site.open_custody import open_custody
from fedglm.client.site.settings import SITE_FILE, Kit, SiteError, SiteSettings, read_kit_file, read_site_file
from fedglm.privacy.custody.store import KEY, Custody
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.keys.vault import Vault

if TYPE_CHECKING:  # else `status` and `stop` would wait for torch
    pass


@dataclass(frozen=True)
class Site:
    """The folder, read and checked.

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
        """The site's name in the federation."""
        return self.kit.site

    @property
    def server(self) -> str:
        """HOST:PORT of the server."""
        return self.settings.site.server or self.kit.server

    @property
    def authority(self) -> Path:
        """The certificate that the server's must be by."""
        return self.folder / "ca.pem"

    @property
    def flower_key(self) -> Path:
        """The key that signs the node on at the SuperLink."""
        return self.folder / "flower.key"

    @property
    def state(self) -> Path:
        """Folder of what the node remembers, of its log and its pid file."""
        return self.path(self.settings.site.state)

    @property
    def home(self) -> Path:
        """Folder of the node: the run's plan is pinned here, and each model's state lies within."""
        return self.state / "node"

    @property
    def custody_folder(self) -> Path:
        """Folder of policy, ledger and signing key."""
        return self.path(self.settings.site.custody)

    @property
    def signing_key(self) -> Path:
        """The key that signs policy and updates."""
        return self.custody_folder / KEY

    @property
    def source(self) -> str:
        """Path of the site's records, or the name of built-in data.

        Raises:
            SiteError: `site.toml` does not say yet.
        """
        data = self.settings.data
        if data.source is None:
            raise SiteError(f"{self.folder / SITE_FILE} does not say yet where the records are: give source in [data]")
        return data.source if data.is_builtin else str(self.path(data.source))

    def path(self, text: str) -> Path:
        """A path in `site.toml`, which counts from the site's folder."""
        return self.folder / os.path.expanduser(text)  # Path.expanduser raises where ~name is nobody's

    def vault(self) -> Vault | None:
        """What encrypts the node's state; None where `site.toml` names no key for it.

        Raises:
            PrivacyError: The key is missing, damaged, others may read it, or its passphrase is missing or wrong.
        """
        return self._vault

    def key(self) -> SigningKey:
        """What signs all that the site sends.

        Raises:
            PrivacyError: It is missing, damaged, or others than its owner may read it.
        """
        return SigningKey.load(self.signing_key)

    def custody(self) -> Custody:
        """What the site permits and what has left, verified; committing to the records takes time, so once.

        Raises:
            DataError: The records cannot be read.
            PrivacyError: Policy or ledger are missing, damaged or not signed by the site.
        """
        return self._custody

    @cached_property
    def _vault(self) -> Vault | None:
        named = self.settings.site.state_key
        return None if named is None else Vault.load(self.path(named))

    @cached_property
    def _custody(self) -> Custody:
        data = self.settings.data
        return open_custody(self.custody_folder, self.source, unit=data.unit, faults=data.row_faults())


def open_site(folder: Path) -> Site:
    """Read the folder of a site.

    Raises:
        SiteError: A file is missing or wrong; the message names it and the remedy.
    """
    kit, settings = read_kit_file(folder), read_site_file(folder)
    if settings.site.name not in (None, kit.site):
        raise SiteError(
            f"{folder}: site.toml is of the site {settings.site.name}, kit.toml of {kit.site}: unpack the right kit"
        )
    return Site(folder.absolute(), settings, kit)
