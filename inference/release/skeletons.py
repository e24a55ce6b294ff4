"""Skeletons of a release's graphs, packed together: they are much alike, so that a second one costs little.

A skeleton is zlib of a serialized ONNX model, as the runtime takes it; in a release the models themselves lie one after
the other in one stream of LZMA (the ``.lzma`` format of XZ Utils).
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Mapping
from typing import Final

from fedglm.inference.errors import InferenceError

MAX_SKELETON_BYTES: Final = 8 << 20
"""Of one model; that of 12 layers has 22 kB."""
_DICTIONARY: Final = 1 << 22
_MEMORY: Final = 16 << 20  # of the decompressor, which needs its dictionary and 100 kB


def pack_skeletons(skeletons: Mapping[str, bytes]) -> tuple[bytes, dict[str, int]]:
    """Pack skeletons.

    Returns:
        The bytes, and the length of each model, in their order: by name.

    Raises:
        InferenceError: One is no skeleton.
    """
    models = {name: _inflate(name, skeletons[name]) for name in sorted(skeletons)}
    plain = b"".join(models.values())
    # Literals of protobuf have no alignment (pb = 0); the dictionary is no longer than the text needs.
    tuned = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "pb": 0, "lp": 0, "dict_size": _DICTIONARY}
    blob = min((lzma.compress(plain, lzma.FORMAT_ALONE, filters=[tuned | {"lc": bits}]) for bits in range(5)), key=len)
    return blob, {name: len(model) for name, model in models.items()}


def unpack_skeletons(blob: bytes, sizes: Mapping[str, int]) -> dict[str, bytes]:
    """Return the skeletons of `pack_skeletons`.

    Args:
        blob: The untrusted bytes.
        sizes: Length of each model.

    Raises:
        InferenceError: They are damaged, of other lengths, or too long.
    """
    if any(size > MAX_SKELETON_BYTES for size in sizes.values()):
        raise InferenceError(f"a graph's skeleton has more than {MAX_SKELETON_BYTES} bytes")
    total = sum(sizes.values())
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=_MEMORY)
    try:
        plain = unpacker.decompress(blob, max_length=total + 1)
    except (lzma.LZMAError, EOFError) as exc:
        raise InferenceError(f"the graphs' skeletons are damaged: {exc}") from exc
    if len(plain) != total or not unpacker.eof or unpacker.unused_data:
        raise InferenceError("the graphs' skeletons are damaged, or of another length than the manifest says")
    skeletons, at = dict[str, bytes](), 0
    for name in sorted(sizes):
        skeletons[name] = zlib.compress(plain[at : at + sizes[name]], 1)
        at += sizes[name]
    return skeletons


def _inflate(name: str, skeleton: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    try:
        model = unpacker.decompress(skeleton, MAX_SKELETON_BYTES)
    except zlib.error as exc:
        raise InferenceError(f"the skeleton {name} is no compressed graph: {exc}") from exc
    if not unpacker.eof or unpacker.unused_data:
        raise InferenceError(f"the skeleton {name} is cut off, or has more than {MAX_SKELETON_BYTES} bytes")
    return model
