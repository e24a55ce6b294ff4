"""Opening a light release: nothing of it is used before its signature, sizes and hashes are checked."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedglm.core.untrusted_files import read_regular
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.manifest import (
    CONFIG,
    FILES,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    SIGNATURE,
    SKELETONS,
    TASK,
    WEIGHTS,
    FileFact,
    Manifest,
    hash_bytes,
)
from fedglm.inference.release.skeletons import unpack_skeletons
from fedglm.inference.release.trust import SIGNATURE_FILE_BYTES, Trust, check_signature
from fedglm.inference.weights.container import unpack_weights
from fedglm.inference.weights.limits import DEFAULT_LIMITS, Limits
from fedglm.inference.weights.model import NumpyModel
from fedglm.privacy.keys.signing import PublicKey

_KNOWN: Final = frozenset((*FILES, MANIFEST, SIGNATURE))


@dataclass(frozen=True, eq=False, kw_only=True)
class LightRelease:
    """A light release, read and checked.

    Attributes:
        folder: Its folder.
        model: Its tensors, configuration and task.
        skeletons: Graphs to fill with the tensors, by name, as the runtime takes them.
        manifest: Its manifest.
        files: The checked content of all files, by name; those of a tokenizer are used from here.
        signature: Content of its signature's file; None for an unsigned one.
        signer: Who signed it; None for nobody.
        verified: Whether a trusted signer did; if not, nobody vouches for what it is.
    """

    folder: Path
    model: NumpyModel
    skeletons: Mapping[str, bytes]
    manifest: Manifest
    files: Mapping[str, bytes]
    signature: bytes | None
    signer: PublicKey | None
    verified: bool

    @property
    def provenance(self) -> str:
        """Who vouches for it, for the user to read."""
        if self.signer is None:
            return "not signed: nobody vouches for it"
        name = self.signer.fingerprint()
        return f"signed by {name}" if self.verified else f"signed by {name}, and not verified: nobody said who that is"


def open_release(folder: str | Path, *, trust: Trust, limits: Limits = DEFAULT_LIMITS) -> LightRelease:
    """Open a light release.

    Args:
        folder: Its folder.
        trust: Whose signature it must have.
        limits: Bounds, checked before memory is taken.

    Raises:
        InferenceError: It is not signed by whom the reader trusts, is damaged, has a file that its manifest does not
            list or a link, or is larger than the limits.
    """
    path = Path(folder)
    sizes = _list_files(path)
    limits.check_bytes(sum(sizes.values()), str(path))
    if MANIFEST not in sizes:
        raise InferenceError(f"{path} holds no light release (it has no {MANIFEST})")
    blob = _read(path / MANIFEST, MAX_MANIFEST_BYTES)
    signature = _read(path / SIGNATURE, SIGNATURE_FILE_BYTES) if SIGNATURE in sizes else None
    try:
        signer, manifest = check_manifest(blob, signature, trust)
        if extra := sorted(sizes.keys() - manifest.files.keys() - {MANIFEST, SIGNATURE}):
            raise InferenceError(f"{extra[0]} is not in the manifest: take it away")
        files = {name: _read_file(path / name, fact, sizes.get(name)) for name, fact in manifest.files.items()}
        return assemble_release(path, manifest, files, signature=signature, signer=signer, trust=trust, limits=limits)
    except InferenceError as exc:
        raise InferenceError(f"{path}: {exc}") from exc


def assemble_release(
    folder: Path,
    manifest: Manifest,
    files: Mapping[str, bytes],
    *,
    signature: bytes | None,
    signer: PublicKey | None,
    trust: Trust,
    limits: Limits,
) -> LightRelease:
    """Read the model of a release whose manifest and files were checked.

    Raises:
        InferenceError: The weights, the configuration or a graph is malformed, or beyond the limits.
    """
    model, skeletons = read_model(manifest, files, limits)
    return LightRelease(
        folder=folder,
        model=model,
        skeletons=skeletons,
        manifest=manifest,
        files=files,
        signature=signature,
        signer=signer,
        verified=trust.verifies,
    )


def check_manifest(blob: bytes, signature: bytes | None, trust: Trust) -> tuple[PublicKey | None, Manifest]:
    """Check who signed a manifest, then parse it.

    Returns:
        The signer, None for nobody, and the manifest.

    Raises:
        InferenceError: Nobody who is trusted signed it, or it is malformed.
    """
    return check_signature(blob, signature, trust), Manifest.from_bytes(blob)


def read_model(manifest: Manifest, files: Mapping[str, bytes], limits: Limits) -> tuple[NumpyModel, dict[str, bytes]]:
    """Read the model and the skeletons from the checked content of a release's files.

    Raises:
        InferenceError: They are malformed, or not what the manifest says.
    """
    limits.check_parameters(manifest.parameters, len(files[WEIGHTS]))
    skeletons = unpack_skeletons(files[SKELETONS], manifest.skeletons)
    model = NumpyModel(
        tensors=unpack_weights(files[WEIGHTS], limits=limits),
        config=_parse_object(files[CONFIG], CONFIG),
        task=_parse_object(files[TASK], TASK),
    )
    if model.count_parameters() != manifest.parameters:
        raise InferenceError(f"{WEIGHTS} has not the {manifest.parameters} parameters of the manifest")
    return model, skeletons


def _list_files(folder: Path) -> dict[str, int]:
    """Return the size of each file in a release's folder.

    Raises:
        InferenceError: There is a link, a folder, a device, or a file of another name than a release has.
    """
    sizes = dict[str, int]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name not in _KNOWN:
                    raise InferenceError(f"{folder}: {entry.name!r:.80} is no file of a light release: take it away")
                status = entry.stat(follow_symlinks=False)
                if not stat.S_ISREG(status.st_mode):
                    raise InferenceError(f"{folder}: {entry.name} is a link or no plain file: fetch the release again")
                sizes[entry.name] = status.st_size
    except OSError as exc:
        raise InferenceError(f"{folder}: no light release can be read ({exc.strerror})") from exc
    return sizes


def _read_file(path: Path, fact: FileFact, size: int | None) -> bytes:
    if size != fact.bytes:
        raise InferenceError(f"{path.name} is missing or has not the {fact.bytes} bytes of the manifest")
    content = _read(path, fact.bytes)
    check_file(path.name, content, fact)
    return content


def check_file(name: str, content: bytes, fact: FileFact) -> None:
    """Check the content of a file against the manifest.

    Raises:
        InferenceError: It is another.
    """
    if hash_bytes(content) != fact.sha256:
        raise InferenceError(f"{name} is damaged: its hash is not that of the manifest; fetch the release again")


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        return read_regular(path, max_bytes)
    except OSError as exc:
        raise InferenceError(f"{path} cannot be read: {exc.strerror}") from exc


def _parse_object(content: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as exc:
        raise InferenceError(f"{name} is not JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise InferenceError(f"{name} holds no JSON object")
    return value
