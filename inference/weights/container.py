"""Packed weights in a file of safetensors: one tensor of bytes, and metadata that say how each weight lies in it.

docs/light_format.md gives the layout. The bytes are the entropy code that all tensors share (`coded_parts`), then what
lies at a fixed width, in the order of the index.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

import numpy as np

from fedglm.inference.errors import InferenceError
from fedglm.inference.weights.coded_parts import CodedParts, find_digits, walk_parts
from fedglm.inference.weights.index import CODED_FLOATS, FloatEntry, Index, MatrixEntry
from fedglm.inference.weights.limits import DEFAULT_LIMITS, Limits
from fedglm.inference.weights.model import Tensor
from fedglm.inference.weights.packing import PACKINGS, FixedPacking
from fedglm.inference.weights.packing_choice import choose_index
from fedglm.inference.weights.quantized import QuantizedMatrix
from fedglm.inference.weights.rans import LaneDecoder, LaneEncoder, stream_size

FORMAT: Final = "fedglm-light/1"
"""Key of the index in the metadata of safetensors."""
_DATA: Final = "weights"
_ALIGNMENT: Final = 8
_MAX_HEADER: Final = 1 << 21


def pack_weights(
    tensors: Mapping[str, Tensor], *, previous: Mapping[str, Tensor] | None = None, compact: bool = True
) -> bytes:
    """Pack tensors into the bytes of a file of safetensors, each in its shortest packing.

    Args:
        tensors: Tensors by name, in the order of the file.
        previous: Tensors of an earlier release: what is packed given them can only be unpacked with them.
        compact: Whether to use the entropy code for codes, too; else they lie at a fixed width, which is read faster.

    Raises:
        InferenceError: A matrix is empty.
    """
    return repack_weights(tensors, choose_index(tensors, previous or {}, compact=compact), previous=previous)


def repack_weights(
    tensors: Mapping[str, Tensor], index: Index, *, previous: Mapping[str, Tensor] | None = None
) -> bytes:
    """Pack tensors as an index says; its lengths are computed anew.

    Raises:
        InferenceError: The tensors are not those of the index, or one does not fit its packing.
    """
    if [entry.name for entry in index.entries] != list(tensors):
        raise InferenceError("the index of the weights names other tensors")
    for entry in index.entries:
        _check_fit(entry, tensors[entry.name])
    encoder = LaneEncoder(index.lanes)
    walk_parts(encoder, index, tensors, previous or {})
    stream, words, raw = encoder.finish()
    fixed = b"".join(_pack_fixed(entry, tensors[entry.name]) for entry in index.entries)
    metadata = {FORMAT: replace(index, words=words, raw=raw).to_text()}
    data = stream + fixed
    header = _write_header(metadata, len(data))
    return len(header).to_bytes(8, "little") + header + data


def unpack_weights(
    blob: bytes, *, previous: Mapping[str, Tensor] | None = None, limits: Limits = DEFAULT_LIMITS
) -> dict[str, Tensor]:
    """Unpack the untrusted bytes of `pack_weights`.

    Args:
        blob: The bytes.
        previous: The tensors that they were packed given; None for none.
        limits: Bounds, checked before memory is taken.

    Raises:
        InferenceError: They are malformed, or claim more than the limits.
    """
    index, data = read_index(blob)
    limits.check_parameters(index.count_parameters(), len(blob))
    end = stream_size(index.lanes, index.words, index.raw)
    sizes = [_fixed_size(entry) for entry in index.entries]
    if len(data) != end + sum(sizes):
        raise InferenceError(f"the weights have {len(data)} bytes, and their index speaks of {end + sum(sizes)}")
    decoder = LaneDecoder(bytes(data[:end]), index.lanes, index.words, index.raw)
    parts = walk_parts(decoder, index, None, previous or {})
    decoder.finish()
    tensors, at = dict[str, Tensor](), _Cursor()
    for entry, size in zip(index.entries, sizes, strict=True):
        fixed = bytes(data[end : end + size])
        end += size
        tensors[entry.name] = at.join(entry, parts, fixed)
    return tensors


def read_index(blob: bytes) -> tuple[Index, memoryview]:
    """Read the index of packed weights and find their bytes.

    Raises:
        InferenceError: They are no packed weights.
    """
    length = int.from_bytes(blob[:8], "little")
    if len(blob) < 8 or not 0 < length <= min(_MAX_HEADER, len(blob) - 8):
        raise InferenceError("the weights are no file of safetensors, or are cut off")
    header, data = blob[8 : 8 + length], memoryview(blob)[8 + length :]
    try:
        text = json.loads(header)["__metadata__"][FORMAT]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise InferenceError(f"the weights are not in the format {FORMAT}: make the release again") from exc
    if not isinstance(text, str) or header != _write_header({FORMAT: text}, len(data)):
        raise InferenceError(f"the header of the weights is not that of the format {FORMAT}")
    return Index.from_text(text), data


class _Cursor:
    """Takes each tensor's part of the pools, in the order of the index."""

    def __init__(self) -> None:
        self._scales = self._floats = 0

    def join(self, entry: FloatEntry | MatrixEntry, parts: CodedParts, fixed: bytes) -> Tensor:
        """Return a tensor from its coded parts and its bytes at a fixed width."""
        if isinstance(entry, FloatEntry):
            if entry.dtype != CODED_FLOATS:
                dtype = "<f2" if entry.dtype == "f16" else "<f4"
                return np.frombuffer(fixed, dtype).reshape(entry.shape).astype(np.float32)
            values = parts.floats[self._floats : self._floats + entry.count]
            self._floats += entry.count
            return values.reshape(entry.shape).astype(np.float32)
        count = entry.blocks[0] * entry.blocks[1]
        scales = parts.scales[self._scales : self._scales + count]
        self._scales += count
        packing = PACKINGS[entry.packing]
        if isinstance(packing, FixedPacking):
            digits = packing.unpack(fixed, entry.count, entry.levels).reshape(entry.shape)
        else:
            digits = parts.digits[entry.name]
        if digits.max() >= entry.levels:
            raise InferenceError(f"{entry.name}: a packed code is above {entry.high}")
        return QuantizedMatrix(
            codes=(digits + np.uint8(entry.low & 255)).view(np.int8),  # modulo 256, as they are below `levels`
            scales=scales.reshape(entry.blocks).astype(np.float32),
            zeros=parts.zeros.get(entry.name),
            block=entry.block,
            low=entry.low,
            high=entry.high,
        )


def _check_fit(entry: FloatEntry | MatrixEntry, tensor: Tensor) -> None:
    if isinstance(entry, MatrixEntry):
        digits, packing = find_digits(entry, tensor), PACKINGS[entry.packing]
        fits = digits is not None and (not isinstance(packing, FixedPacking) or packing.fits(digits))
        layout = isinstance(tensor, QuantizedMatrix) and (tensor.block, tensor.zeros is not None)
        if fits and layout == (entry.block, entry.zeros):
            return
    elif not isinstance(tensor, QuantizedMatrix) and tensor.shape == entry.shape:
        return
    raise InferenceError(f"{entry.name} is not what the index of the weights says")


def _pack_fixed(entry: FloatEntry | MatrixEntry, tensor: Tensor) -> bytes:
    if isinstance(entry, FloatEntry):
        if entry.dtype == CODED_FLOATS or isinstance(tensor, QuantizedMatrix):
            return b""
        with np.errstate(over="ignore"):
            return tensor.astype("<f2" if entry.dtype == "f16" else "<f4").tobytes()
    packing, digits = PACKINGS[entry.packing], find_digits(entry, tensor)
    if not isinstance(packing, FixedPacking) or digits is None:
        return b""
    return packing.pack(digits.reshape(-1), entry.levels)


def _fixed_size(entry: FloatEntry | MatrixEntry) -> int:
    if isinstance(entry, FloatEntry):
        return {"f16": 2, "f32": 4, CODED_FLOATS: 0}[entry.dtype] * entry.count
    packing = PACKINGS[entry.packing]
    return packing.size(entry.count, entry.levels) if isinstance(packing, FixedPacking) else 0


def _write_header(metadata: Mapping[str, str], size: int) -> bytes:
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"__metadata__": metadata, _DATA: tensor}, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % _ALIGNMENT)
