"""The last light releases of a project, from which deltas for its sites are made.

state/light/SHA256/                        a release, by the SHA-256 of its manifest
runs/NAME/light-validations/VERSION/SITE.json   how a release works at a site, as the site signed it
"""

import hashlib
import shutil
from pathlib import Path
from typing import Final

from fedglm.core.files import storage_errors, write_atomically
from fedglm.core.untrusted_files import read_regular
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.archive import pack_release
from fedglm.inference.release.delta import make_delta
from fedglm.inference.release.folder import write_folder
from fedglm.inference.release.manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE
from fedglm.inference.release.reader import LightRelease, check_manifest, open_release
from fedglm.inference.release.trust import SIGNATURE_FILE_BYTES, Trust
from fedglm.privacy.keys.signing import PublicKey
from fedglm.run_folder.names import LIGHT, LIGHT_VALIDATIONS
from fedglm.server.run_setup import KeptRelease

FOLDER: Final = "light"
_MAX_KEPT: Final = 4


class LightStore:
    """The last light releases of a project.

    Args:
        state: Folder of the project's state.
        key: Public key of the server, which signed them.
        run: Folder of the run that makes releases, or hands earlier ones out.
    """

    def __init__(self, state: Path, key: PublicKey, run: Path) -> None:
        self._folder, self._trust, self._run = state / FOLDER, Trust.in_keys([key]), run

    def find_newest(self) -> KeptRelease | None:
        """Return the release with the greatest version; None where none is kept that this server signed."""
        return max(self._list_kept(), default=None)

    def keep(self, release: KeptRelease) -> None:
        """Keep a copy of the run's newest release, and drop all but the last few.

        Args:
            release: What the release in the run's folder must be.

        Raises:
            InferenceError: There is another one, or none of this server's.
            StorageError: The copy cannot be written.
        """
        opened = open_release(self._run / LIGHT, trust=self._trust)
        manifest = opened.manifest.to_bytes()
        if (opened.manifest.version, hashlib.sha256(manifest).hexdigest()) != release:
            raise InferenceError(f"{self._run / LIGHT} holds another release than version {release.version} of the run")
        signature = {} if opened.signature is None else {SIGNATURE: opened.signature}
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_folder(self._folder / release.manifest, {**opened.files, MANIFEST: manifest, **signature})
        kept = {one.manifest for one in sorted(self._list_kept())[-_MAX_KEPT:]}
        for path in self._folder.iterdir():
            if path.name not in kept:  # also what a killed process left
                shutil.rmtree(path, ignore_errors=True)

    def pack(self, manifest: str, base: str) -> tuple[bytes, str | None]:
        """Return the bytes that a site needs for a release, and the release that they are a delta from.

        Args:
            manifest: SHA-256 (hex) of the release's manifest; the release is kept here.
            base: The same of what the site holds, which is untrusted; empty for nothing.

        Returns:
            A delta and its base where that is known and the delta is shorter; else the whole release, and None.

        Raises:
            InferenceError: The release is not here, or is damaged.
        """
        release = self._open(manifest)
        whole = pack_release(release)
        if base in {one.manifest for one in self._list_kept()}:
            try:
                delta = make_delta(self._open(base), release)
            except InferenceError:  # that one is damaged
                return whole, None
            if len(delta) < len(whole):
                return delta, base
        return whole, None

    def record_validation(self, site: str, version: int, signed: bytes) -> None:
        """Keep what a site says of how a release works there, its last word for each version.

        Args:
            site: Name of the site.
            version: Number of the release.
            signed: The file of its validation.

        Raises:
            StorageError: The file cannot be written.
        """
        write_atomically(self._run / LIGHT_VALIDATIONS / f"{version:010d}" / f"{site}.json", signed)

    def _open(self, manifest: str) -> LightRelease:
        release = open_release(self._folder / manifest, trust=self._trust)
        if hashlib.sha256(release.manifest.to_bytes()).hexdigest() != manifest:
            raise InferenceError(f"{self._folder / manifest} holds another release")
        return release

    def _list_kept(self) -> list[KeptRelease]:
        """List the releases by their manifests; what is none of this server's is left out."""
        kept = []
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            try:
                blob = read_regular(path / MANIFEST, MAX_MANIFEST_BYTES)
                _, manifest = check_manifest(blob, read_regular(path / SIGNATURE, SIGNATURE_FILE_BYTES), self._trust)
            except (OSError, InferenceError):
                continue
            if manifest.version is not None and path.name == hashlib.sha256(blob).hexdigest():
                kept.append(KeptRelease(version=manifest.version, manifest=path.name))
        return kept
