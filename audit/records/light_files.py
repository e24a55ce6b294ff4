"""The light release in a run's folder, read without trust: who signed its manifest, and its files against that."""

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fedglm.core.untrusted_files import read_regular, read_regular_blocks
from fedglm.inference.errors import InferenceError
from fedglm.inference.release.manifest import MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, Manifest, encode_hash
from fedglm.inference.release.trust import SIGNATURE_FILE_BYTES, Trust, check_signature
from fedglm.inference.weights.limits import DEFAULT_LIMITS
from fedglm.privacy.keys.signing import PublicKey

_MAX_FILES: Final = 100


@dataclass(frozen=True, kw_only=True)
class LightFiles:
    """A light release as it lies in a run's folder.

    Attributes:
        manifest: SHA-256 (hex) of its manifest; empty where that cannot be read.
        version: Number of the release; None for one of no federation.
        bytes: Bytes of all files that it must have.
        signer: Who signed the manifest; None for nobody.
        fault: What is wrong with it by itself; empty for nothing.
        missing: Files that it must have, and that are not here.
    """

    manifest: str = ""
    version: int | None = None
    bytes: int = 0
    signer: PublicKey | None = None
    fault: str = ""
    missing: tuple[str, ...] = ()


def read_light_files(folder: Path) -> LightFiles | None:
    """Read the light release in a folder; None where nothing is there.

    Sizes are checked before files are read, and no more of a file is in memory than a block.

    Args:
        folder: Folder of the release.
    """
    if not os.path.lexists(folder):
        return None
    try:
        sizes = _list_sizes(folder)
        if not sizes:
            return None
        DEFAULT_LIMITS.check_bytes(sum(sizes.values()), "it")
        if MANIFEST not in sizes:
            return LightFiles(missing=(MANIFEST,))
        blob = read_regular(folder / MANIFEST, MAX_MANIFEST_BYTES)
        signature = read_regular(folder / SIGNATURE, SIGNATURE_FILE_BYTES) if SIGNATURE in sizes else None
        signer = check_signature(blob, signature, Trust.unverified())
        manifest = Manifest.from_bytes(blob)
        expected = {name: fact.bytes for name, fact in manifest.files.items()} | {MANIFEST: len(blob)}
        expected |= {SIGNATURE: SIGNATURE_FILE_BYTES}
        return LightFiles(
            manifest=hashlib.sha256(blob).hexdigest(),
            version=manifest.version,
            bytes=sum(expected.values()),
            signer=signer,
            fault=_find_fault(folder, sizes, manifest),
            missing=tuple(sorted(expected.keys() - sizes.keys())),
        )
    except OSError as exc:
        return LightFiles(fault=f"it cannot be read: {exc.strerror or exc}")
    except InferenceError as exc:
        return LightFiles(fault=str(exc))


def _list_sizes(folder: Path) -> dict[str, int]:
    """Return the size of each file; raises InferenceError for what no release has."""
    if folder.is_symlink() or not folder.is_dir():
        raise InferenceError("it is a link, or no folder")
    sizes = dict[str, int]()
    with os.scandir(folder) as entries:
        for entry in entries:
            status = entry.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise InferenceError(f"{entry.name!a:.80} in it is a link, or no file")
            sizes[entry.name] = status.st_size
            if len(sizes) > _MAX_FILES:
                raise InferenceError("it holds more files than a release has")
    return sizes


def _find_fault(folder: Path, sizes: dict[str, int], manifest: Manifest) -> str:
    """Return the first file that is not what the manifest says; empty for none."""
    for name in sorted(sizes.keys() - {MANIFEST, SIGNATURE}):
        fact = manifest.files.get(name)
        if fact is None:
            return f"{name!a:.80} is not in its manifest"
        if sizes[name] != fact.bytes or _hash_file(folder / name, fact.bytes) != fact.sha256:
            return f"{name} is not the file of its manifest"
    return ""


def _hash_file(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    for block in read_regular_blocks(path, size):
        digest.update(block)
    return encode_hash(digest.digest())
