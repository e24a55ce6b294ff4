"""A delta between two releases: what a node that has one needs for the other.

Layout, little-endian: `_MAGIC`; SHA-256 of the base's manifest (32 bytes); lengths of the new manifest, of its
signature (0 or 96), of the index of the new weights, and of the compressed text (4 bytes each); the text; the weights.
The text is the manifest, the signature, the index, and each file but the weights that the base has not, in the order
of `FILES`; it is compressed by zlib with the base's own files as dictionary. The weights are a file of packed weights
whose codes are coded given the base's (`pack_weights`), from which the new file is packed again, bit by bit; or,
without an index, that file itself; or nothing, if the base has it.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import Final

from fedglm.inference.errors import InferenceError
from fedglm.inference.release.folder import write_folder
from fedglm.inference.release.manifest import FILES, MANIFEST, MAX_MANIFEST_BYTES, SIGNATURE, SKELETONS, WEIGHTS
from fedglm.inference.release.reader import LightRelease, assemble_release, check_file, check_manifest
from fedglm.inference.release.trust import SIGNATURE_FILE_BYTES, Trust
from fedglm.inference.weights.container import pack_weights, read_index, repack_weights, unpack_weights
from fedglm.inference.weights.index import MAX_INDEX_BYTES, Index
from fedglm.inference.weights.limits import DEFAULT_LIMITS, Limits

_MAGIC: Final = b"fedglm-light-delta/1"
_HEAD: Final = struct.Struct(f"<{len(_MAGIC)}s32s4I")


def make_delta(base: LightRelease, new: LightRelease) -> bytes:
    """Make the delta from one release to another."""
    index, weights = b"", b""
    if _differs(base, new, WEIGHTS):
        weights = new.files[WEIGHTS]
        text = read_index(weights)[0].to_text().encode()
        coded = pack_weights(new.model.tensors, previous=base.model.tensors)
        if len(coded) + len(text) < len(weights):
            index, weights = text, coded
    manifest = new.manifest.to_bytes()
    signature = new.signature or b""
    changed = [new.files[name] for name in FILES if name != WEIGHTS and name in new.files and _differs(base, new, name)]
    packer = zlib.compressobj(9, zdict=_dictionary(base))
    text = packer.compress(b"".join([manifest, signature, index, *changed])) + packer.flush()
    head = _HEAD.pack(_MAGIC, _hash_manifest(base), len(manifest), len(signature), len(index), len(text))
    return head + text + weights


def apply_delta(
    base: LightRelease, delta: bytes, folder: str | Path, *, trust: Trust, limits: Limits = DEFAULT_LIMITS
) -> LightRelease:
    """Write the release that a delta leads to.

    Args:
        base: The release that the delta was made from.
        delta: The untrusted delta.
        folder: Folder of the new release; an earlier one there is replaced.
        trust: Whose signature the new release must have.
        limits: Bounds, checked before memory is taken.

    Returns:
        The new release, with the bytes that its signer released.

    Raises:
        InferenceError: The delta is malformed, was made from another release, or leads to none that would be opened;
            nothing is written.
        StorageError: The folder cannot be written.
    """
    if len(delta) < _HEAD.size or not delta.startswith(_MAGIC):
        raise InferenceError("this is no delta of a light release")
    _, made_from, *lengths, packed = _HEAD.unpack_from(delta)
    if made_from != _hash_manifest(base):
        raise InferenceError("the delta was made from another release than the one here: fetch the whole release")
    for length, bound in zip(lengths, (MAX_MANIFEST_BYTES, SIGNATURE_FILE_BYTES, MAX_INDEX_BYTES), strict=True):
        if length > bound:
            raise InferenceError("the delta's manifest is too long: fetch the whole release")
    body = delta[_HEAD.size :]
    text = _Text(body[:packed], _dictionary(base))
    blob, signature, index = map(text.take, lengths)
    signer, manifest = check_manifest(blob, signature or None, trust)
    limits.check_bytes(sum(fact.bytes for fact in manifest.files.values()), "the new release")
    has_weights = base.manifest.files[WEIGHTS] != manifest.files[WEIGHTS]
    if len(body) < packed or (len(body) > packed) != has_weights:
        raise InferenceError("the delta is cut off, or goes on after its end")
    files = dict[str, bytes]()
    for name in (name for name in FILES if name in manifest.files):
        fact, old = manifest.files[name], base.manifest.files.get(name)
        if old == fact:
            files[name] = base.files[name]
        elif name == WEIGHTS:
            files[name] = _rebuild_weights(base, body[packed:], index, limits)
        else:
            files[name] = text.take(fact.bytes)
        check_file(name, files[name], fact)
    text.finish()
    path = Path(folder)
    release = assemble_release(
        path, manifest, files, signature=signature or None, signer=signer, trust=trust, limits=limits
    )
    signed = {SIGNATURE: signature} if signature else {}
    write_folder(path, {**files, MANIFEST: blob, **signed})
    return release


class _Text:
    """Unpacks the text of a delta piece by piece, so that no more memory is taken than a piece may have."""

    def __init__(self, blob: bytes, dictionary: bytes) -> None:
        self._unpacker = zlib.decompressobj(zdict=dictionary)
        self._rest = blob

    def take(self, size: int) -> bytes:
        """Return the next `size` bytes."""
        if not size:
            return b""
        try:
            piece = self._unpacker.decompress(self._rest, size)
        except zlib.error as exc:
            raise InferenceError(f"the delta is damaged: {exc}") from exc
        self._rest = self._unpacker.unconsumed_tail
        if len(piece) != size:
            raise InferenceError("the delta is cut off")
        return piece

    def finish(self) -> None:
        """Check that the text has come to its end."""
        try:
            more = self._unpacker.decompress(self._rest, 1)
        except zlib.error as exc:
            raise InferenceError(f"the delta is damaged: {exc}") from exc
        if more or not self._unpacker.eof or self._unpacker.unused_data:
            raise InferenceError("the delta goes on after its end")


def _rebuild_weights(base: LightRelease, blob: bytes, index: bytes, limits: Limits) -> bytes:
    if not index:
        return blob
    tensors = unpack_weights(blob, previous=base.model.tensors, limits=limits)
    wanted = Index.from_text(index.decode("ascii", "replace"))
    limits.check_parameters(wanted.count_parameters(), len(blob))
    return repack_weights(tensors, wanted)


def _differs(base: LightRelease, new: LightRelease, name: str) -> bool:
    return base.manifest.files.get(name) != new.manifest.files[name]


def _hash_manifest(release: LightRelease) -> bytes:
    return hashlib.sha256(release.manifest.to_bytes()).digest()


def _dictionary(base: LightRelease) -> bytes:
    """Return the texts of the base, the likest last: zlib looks back 32 kB."""
    texts = [base.files[name] for name in reversed(FILES) if name in base.files and name not in (WEIGHTS, SKELETONS)]
    return b"".join([*texts, base.manifest.to_bytes()])
