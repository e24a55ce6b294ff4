"""The last light releases of a project, from which deltas for its sites are made.

state/light/SHA256/               a release, by the SHA-256 of its manifest
runs/NAME/light-validations.json  what sites say of how the run's releases work there
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fedglm.core.files import storage_errors, write_atomically
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.archive import pack_release
from fedglm.inference.release.delta import make_delta
from fedglm.inference.release.folder import write_folder
from fedglm.inference.release.manifest import MANIFEST, SIGNATURE
from fedglm.inference.release.reader import LightRelease, open_release
from fedglm.inference.release.trust import Trust
from fedglm.privacy.keys.signing import PublicKey
from fedglm.run_folder.names import LIGHT, LIGHT_VALIDATIONS

FOLDER: Final = "light"
_MAX_KEPT: Final = 4


class LightStore:
    """The last light releases of a project.

    Args:
        state: Folder of the project's state.
        key: Public key of the server, which signed them.
        run: Folder of the run that makes releases.
    """

    def __init__(self, state: Path, key: PublicKey, run: Path) -> None:
        self._folder, self._trust, self._run = state / FOLDER, Trust.in_keys([key]), run

    def keep(self, manifest: str) -> None:
        """Keep a copy of the run's newest release, and drop all but the last few.

        Args:
            manifest: SHA-256 (hex) of its manifest.

        Raises:
            InferenceError: It is none of this server's.
            StorageError: The copy cannot be written.
        """
        release = open_release(self._run / LIGHT, trust=self._trust)
        signature = {} if release.signature is None else {SIGNATURE: release.signature}
        with storage_errors(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_folder(self._folder / manifest, {**release.files, MANIFEST: release.manifest.to_bytes(), **signature})
        kept = sorted(self._folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        for old in kept[:-_MAX_KEPT]:
            shutil.rmtree(old, ignore_errors=True)

    def pack(self, manifest: str, base: str) -> tuple[bytes, str | None]:
        """Return the bytes that a site needs for a release, and the release that they are a delta from.

        Args:
            manifest: SHA-256 (hex) of the release's manifest; the release is kept here.
            base: The same of what the site holds; empty for nothing.

        Returns:
            A delta and its base where that is known and the delta is shorter; else the whole release, and None.

        Raises:
            InferenceError: The release is not here, or is damaged.
        """
        release = open_release(self._folder / manifest, trust=self._trust)
        whole = pack_release(release)
        if (known := self._open_known(base)) is not None:
            delta = make_delta(known, release)
            if len(delta) < len(whole):
                return delta, base
        return whole, None

    def record_validation(self, site: str, version: int, validation: Mapping[str, Any]) -> None:
        """Keep what a site says of how a release works there, its last word for each version.

        Args:
            site: Name of the site.
            version: Number of the release.
            validation: What it says.

        Raises:
            StorageError: The file cannot be written.
        """
        path = self._run / LIGHT_VALIDATIONS
        known = json.loads(path.read_text()) if path.is_file() else {}
        known.setdefault(site, {})[str(version)] = dict(validation)
        write_atomically(path, json.dumps(known, indent=1, sort_keys=True) + "\n")

    def _open_known(self, manifest: str) -> LightRelease | None:
        """Open a release by the hash that a site names, which is untrusted; None where it is not here any more."""
        if not self._folder.is_dir() or manifest not in {path.name for path in self._folder.iterdir()}:
            return None
        try:
            return open_release(self._folder / manifest, trust=self._trust)
        except InferenceError:
            return None
