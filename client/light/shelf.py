"""The light release that a node holds: the newest one that its server signed, whole, in the node's state folder.

    light/0000000012/      the release with version 12
    light/validation.json  what its validation on this node has found, unsigned
    light/.incoming/       one that is being taken; left over from a killed process, and removed by the next

A release comes to its place by a rename, after its signature, version, sizes and hashes were checked and it was tried
here; only then is the one before removed. It is the server's and holds nothing of the site's, so it is not encrypted.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from fedglm.client.light.validation import validate
from fedglm.core.errors import FedglmError
from fedglm.core.files import storage_errors, sync_folder, write_atomically
from fedglm.core.untrusted_files import read_regular
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.archive import unpack_release
from fedglm.inference.release.delta import apply_delta
from fedglm.inference.release.manifest import hash_to_hex
from fedglm.inference.release.reader import LightRelease, open_release
from fedglm.inference.release.trust import Trust
from fedglm.inference.validation.validation import MAX_BYTES, Validation
from fedglm.inference.weights.limits import DEFAULT_LIMITS, Limits
from fedglm.privacy.keys.signing import PublicKey

_INCOMING: Final = ".incoming"
_VALIDATION: Final = "validation.json"
_DIGITS: Final = 10
MAX_VERSION: Final = 2**31
"""Bound of version numbers, as of those of models."""


class LightError(FedglmError, ValueError):
    """A light release that the node does not take, or does not hold; the message names the reason and the remedy."""


class UnfitError(LightError):
    """A light release that does not work on this node.

    Attributes:
        validation: What was found.
    """

    def __init__(self, validation: Validation) -> None:
        super().__init__(f"the light release does not work here, and the one before stays: {validation.first_failure}")
        self.validation = validation


class LightShelf:
    """The light releases of a node.

    Args:
        folder: Folder of the releases; it is created when first needed.
        keys: Public keys of the server, as the site has pinned them.
        limits: Bounds of a release, checked before memory is taken.
        check: Validates a release on this node; returns None where it cannot.
    """

    def __init__(
        self,
        folder: Path,
        keys: Iterable[PublicKey],
        *,
        limits: Limits = DEFAULT_LIMITS,
        check: Callable[[LightRelease], Validation | None] = validate,
    ) -> None:
        self._folder, self._trust, self._limits, self._check = folder, Trust.in_keys(keys), limits, check

    def find_newest(self) -> Path | None:
        """Return the folder of the newest release; None where the node has none."""
        version = self._find_version()
        return None if version < 0 else self._locate(version)

    def open_newest(self) -> LightRelease | None:
        """Open the newest release; None where the node has none.

        Raises:
            LightError: It is damaged, or not signed by the server.
        """
        if (path := self.find_newest()) is None:
            return None
        try:
            return open_release(path, trust=self._trust, limits=self._limits)
        except InferenceError as exc:
            raise LightError(f"{exc}; remove the folder, and the server's next light release comes whole") from exc

    def describe(self) -> tuple[int, str]:
        """Return version and SHA-256 (hex) of the manifest of the newest release; -1 and "" where there is none.

        A release that is damaged has no manifest to make a delta from, so the next one comes whole.
        """
        try:
            release = self.open_newest()
        except LightError:
            return self._find_version(), ""
        return (-1, "") if release is None else (self._find_version(), hash_manifest(release))

    def read_validation(self, manifest: str) -> Validation | None:
        """Return what the validation of a release has found that was taken here last; None where nobody knows.

        Args:
            manifest: SHA-256 (hex) of the release's manifest.
        """
        try:
            made = Validation.model_validate_json(read_regular(self._folder / _VALIDATION, MAX_BYTES))
        except (OSError, ValidationError):
            return None
        return made if made.manifest_sha256 is not None and hash_to_hex(made.manifest_sha256) == manifest else None

    def take(self, blob: bytes, *, base: str | None) -> None:
        """Take a release that the server sent, if it is newer than the one that is here and works.

        One of the same version is taken only where the one here is damaged.

        Args:
            blob: The untrusted release, whole or as a delta.
            base: SHA-256 (hex) of the manifest of the release that the delta was made from; None for a whole one.

        Raises:
            LightError: It is malformed, not signed by the server, older than what is here, or does not work here; the
                release that is here stays.
            StorageError: It cannot be written; the release that is here stays.
        """
        incoming = self._folder / _INCOMING
        self._clear_incoming()
        try:
            release = self._unpack(blob, base, incoming)
            version = self._check_version(release)
            validation = self._check(release)
            if validation is not None and not validation.passed:
                raise UnfitError(validation)
            if validation is not None:  # before the release: one that is of another release says nothing
                write_atomically(self._folder / _VALIDATION, validation.model_dump_json() + "\n")
            self._adopt(incoming, version)
        finally:
            self._clear_incoming()

    def _unpack(self, blob: bytes, base: str | None, incoming: Path) -> LightRelease:
        try:
            if base is None:
                return unpack_release(blob, incoming, trust=self._trust, limits=self._limits)
            try:
                held = self.open_newest()
            except LightError as exc:  # whose text names a path, which is not for the server
                raise LightError("the light release here is damaged: none can be made from it by a delta") from exc
            if held is None or hash_manifest(held) != base:
                raise LightError("the delta is from another light release than the one here")
            return apply_delta(held, blob, incoming, trust=self._trust, limits=self._limits)
        except InferenceError as exc:
            raise LightError(str(exc)) from exc

    def _check_version(self, release: LightRelease) -> int:
        version, held = release.manifest.version, self._find_version()
        if version is None or not 0 <= version < MAX_VERSION:
            raise LightError("the light release has no version: it is of no federation")
        if version < held or (version == held and not self._is_damaged()):
            raise LightError(f"the light release has version {version}, and version {held} is here already")
        return version

    def _adopt(self, incoming: Path, version: int) -> None:
        """Put a checked release in its place, then remove those before."""
        with storage_errors(self._folder):
            if self._locate(version).exists():  # damaged
                shutil.rmtree(self._locate(version))
            incoming.rename(self._locate(version))
            sync_folder(self._folder)
            for other in self._list_versions():
                if other != version:
                    shutil.rmtree(self._locate(other), ignore_errors=True)

    def _clear_incoming(self) -> None:
        for left in self._folder.glob(f"{_INCOMING}*"), self._folder.glob(f".{_INCOMING}.*"):
            for path in left:
                shutil.rmtree(path, ignore_errors=True)

    def _is_damaged(self) -> bool:
        try:
            self.open_newest()
        except LightError:
            return True
        return False

    def _find_version(self) -> int:
        return max(self._list_versions(), default=-1)

    def _list_versions(self) -> list[int]:
        if not self._folder.is_dir():
            return []
        names = [path.name for path in self._folder.iterdir() if path.is_dir()]
        return [int(name) for name in names if len(name) == _DIGITS and name.isdecimal() and name.isascii()]

    def _locate(self, version: int) -> Path:
        return self._folder / f"{version:0{_DIGITS}d}"


def hash_manifest(release: LightRelease) -> str:
    """Return the SHA-256 (hex) of a release's manifest, and so of every file."""
    return hashlib.sha256(release.manifest.to_bytes()).hexdigest()
