"""A whole release as one text of bytes, for a message.

Layout, little-endian: `_MAGIC`; lengths of the manifest and of its signature (4 bytes each); the manifest; the
signature; each file that the manifest lists, in the order of `FILES`, of the length that it has there. Nothing is
compressed again: the weights are packed already.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

from fedglm.inference.errors import InferenceError
from fedglm.inference.release.folder import write_folder
from fedglm.inference.release.manifest import FILES, MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE
from fedglm.inference.release.reader import LightRelease, assemble_release, check_file, check_manifest
from fedglm.inference.release.trust import SIGNATURE_FILE_BYTES, Trust
from fedglm.inference.weights.limits import DEFAULT_LIMITS, Limits

_MAGIC: Final = b"fedglm-light-archive/1"
_HEAD: Final = struct.Struct(f"<{len(_MAGIC)}s2I")


def pack_release(release: LightRelease) -> bytes:
    """Return a release as bytes."""
    manifest, signature = release.manifest.to_bytes(), release.signature or b""
    files = [release.files[name] for name in FILES if name in release.files]
    return b"".join([_HEAD.pack(_MAGIC, len(manifest), len(signature)), manifest, signature, *files])


def unpack_release(blob: bytes, folder: str | Path, *, trust: Trust, limits: Limits = DEFAULT_LIMITS) -> LightRelease:
    """Write the release that `pack_release` packed.

    Args:
        blob: The untrusted bytes.
        folder: Folder of the release; an earlier one there is replaced.
        trust: Whose signature it must have.
        limits: Bounds, checked before memory is taken.

    Raises:
        InferenceError: The bytes are malformed, or are no release that would be opened; nothing is written.
        StorageError: The folder cannot be written.
    """
    if len(blob) < _HEAD.size or not blob.startswith(_MAGIC):
        raise InferenceError("this is no light release")
    limits.check_bytes(len(blob), "the release")
    _, length, signature_length = _HEAD.unpack_from(blob)
    if length > MAX_MANIFEST_BYTES or signature_length > SIGNATURE_FILE_BYTES:
        raise InferenceError("the release's manifest is too long")
    parts = _Parts(blob)
    manifest_blob, signature = parts.take(length), parts.take(signature_length) or None
    signer, manifest = check_manifest(manifest_blob, signature, trust)
    files = dict[str, bytes]()
    for name in (name for name in FILES if name in manifest.files):
        files[name] = parts.take(manifest.files[name].bytes)
        check_file(name, files[name], manifest.files[name])
    parts.finish()
    release = assemble_release(
        Path(folder), manifest, files, signature=signature, signer=signer, trust=trust, limits=limits
    )
    write_folder(folder, {**files, MANIFEST: manifest_blob, **({} if signature is None else {SIGNATURE: signature})})
    return release


class _Parts:
    """Takes the parts of an archive one after the other."""

    def __init__(self, blob: bytes) -> None:
        self._blob, self._at = blob, _HEAD.size

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        if size > len(self._blob) - self._at:
            raise InferenceError("the release is cut off")
        part = self._blob[self._at : self._at + size]
        self._at += size
        return part

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._at != len(self._blob):
            raise InferenceError("the release goes on after its end")
