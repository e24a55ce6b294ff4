"""The codecs by name: each turns a vector into bytes and back.

    codec = make_codec("topk-sign", density=0.01)
    blob = codec.encode(update)                    # bytes; the same for the same update
    decode(blob, size=update.size).add_to(total, weight)

A blob names its codec, so a reader needs no settings. Its byte format is described in `wire` and in each codec. A new
codec is a class with `name`, a `wire_id` that was never used before, the model of its options, `encode` and `decode`,
and a line in the registry.
"""

from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from fedglm.compression.codecs.dense import DenseFp16, DenseFp32, Int8
from fedglm.compression.codecs.hybrid import Hybrid
from fedglm.compression.codecs.lowrank import LowRank
from fedglm.compression.codecs.options import CodecOptions
from fedglm.compression.codecs.topk import TopK2Bit, TopKFp16, TopKInt8, TopKSign
from fedglm.compression.errors import CodecError
from fedglm.compression.layout import Layout
from fedglm.compression.updates import Accumulator
from fedglm.compression.vectors import Vector
from fedglm.compression.wire.envelope import UPDATE, Blob, read_kind
from fedglm.core.suggestions import did_you_mean

__all__ = ["Codec", "CodecError", "FusedCodec", "Update", "codec_names", "codec_options", "decode", "make_codec"]


class Update(Protocol):
    """A decoded update; the sparse ones also have `positions` (int64, ascending) and `values` (float32)."""

    @property
    def size(self) -> int:
        """Number of elements of the vector."""

    @property
    def work(self) -> int:
        """Cost of decoding, as the number of elements that an entropy decoder reads in the same time."""

    def to_dense(self) -> Vector:
        """Return the vector as a copy of shape (size,), float32."""

    def add_to(self, accumulator: Accumulator, weight: float) -> None:
        """Add `weight * self` to `accumulator` of shape (size,), in place.

        A float32 or float64 accumulator gets `weight * value` in its own precision. An int64 accumulator is
        fixed-point: it gets `rint(weight * value)`, so `weight` holds the power-of-two scale, and the sum of any
        updates has the same bits in any order. Terms are bounded here; bounding the sum is left to the caller.

        Raises:
            CodecError: A fixed-point term is outside +-2**62; the accumulator is unchanged.
            ValueError, TypeError: The accumulator has another shape or dtype.
        """

    def max_abs(self) -> float:
        """Return the largest magnitude, in time proportional to the values sent, not to `size`."""

    def norm(self) -> float:
        """Return the Euclidean norm, summed in float64, in time proportional to the values sent, not to `size`."""


class Codec(Protocol):
    """A way to code a vector. Options affect encoding alone: any instance decodes what any other encoded."""

    name: ClassVar[str]
    wire_id: ClassVar[int]
    options_type: ClassVar[type[CodecOptions]]

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,); the same vector gives the same bytes.

        For the low-rank codecs this holds on one machine only, since encoding depends on its linear algebra library.
        Decoding gives the same bits everywhere.

        Raises:
            ValueError: The vector is empty, has another dtype or shape, or holds NaN or infinity; the message gives
                the value and its position.
        """

    @classmethod
    def decode(cls, blob: Blob, size: int) -> Update:
        """Decode a vector of `size` elements from an untrusted blob.

        Time and memory are bounded by `size` and the blob's length.

        Raises:
            CodecError: The blob is none that this codec could have made.
        """


@runtime_checkable
class FusedCodec(Codec, Protocol):
    """A codec that adds the residual, codes the sum and keeps what the code leaves out, in one pass.

    It gives the same bits as `encode`, `decode` and a subtraction one after the other, and is faster.
    """

    def encode_compensated(self, delta: Vector, residual: Vector, factor: np.float32, left: Vector) -> bytes:
        """Code `delta + residual * factor`, rounded after each step, as `encode` would.

        Args:
            delta: Shape (n,), float32.
            residual: Shape (n,), float32, finite, contiguous.
            factor: Factor on the residual, from 0 to 1.
            left: Shape (n,), float32, contiguous, sharing no memory with the others; overwritten with the sum minus
                what the blob decodes to.

        Raises:
            ValueError: The delta has another shape or holds NaN or infinity (the message gives the value and its
                position), or the sum overflows. The content of `left` is then undefined.
        """


_REGISTRY: dict[str, type[Codec]] = {
    "dense-fp32": DenseFp32,
    "dense-fp16": DenseFp16,
    "int8": Int8,
    "topk-fp16": TopKFp16,
    "topk-sign": TopKSign,
    "topk-2bit": TopK2Bit,
    "topk-int8": TopKInt8,
    "lowrank": LowRank,
    "hybrid": Hybrid,
}
_BY_WIRE_ID = {codec.wire_id: codec for codec in _REGISTRY.values()}


def codec_names() -> tuple[str, ...]:
    """Return the names that `make_codec` takes."""
    return tuple(_REGISTRY)


def codec_options(name: str) -> tuple[str, ...]:
    """Return the names of the options that `make_codec` takes for a codec, besides `layout`.

    Raises:
        CodecError: There is no codec of that name.
    """
    return tuple(_find_codec(name).options_type.model_fields)


def make_codec(name: str, *, layout: Layout | None = None, **options: object) -> Codec:
    """Make the codec `name`.

    Args:
        name: One of `codec_names()`.
        layout: Tensors behind the vector, for codecs that use rows and columns; the others ignore it.
        options: Options that `codec_options(name)` lists: `density` and `coder` for the sparse codecs, `rank` for the
            low-rank ones, `max_bytes` for all but the dense ones, `overshoot` for `topk-sign`.

    Raises:
        CodecError: The name or an option is unknown (the message suggests near names), or a value is out of range.
    """
    codec = _find_codec(name)
    try:
        checked = codec.options_type(**options)
    except ValidationError as exc:
        raise CodecError(_describe_option_error(name, codec.options_type, exc.errors()[0])) from exc
    build: Callable[[CodecOptions, Layout | None], Codec] = codec
    return build(checked, layout)


def decode(blob: Blob, *, size: int, codec: str | None = None) -> Update:
    """Decode an untrusted blob, as a server or a verifier does.

    Args:
        blob: The bytes.
        size: Number of elements that the update must have.
        codec: Name of the codec that must have made it; None takes any. Give it where the codec was agreed with the
            sender: codecs differ in the time and the memory that a blob can demand.

    Raises:
        CodecError: The blob is no update of `size` elements, or its codec is unknown here or not `codec`.
    """
    kind = read_kind(blob, UPDATE)
    if codec is not None and kind != _find_codec(codec).wire_id:
        other = _BY_WIRE_ID[kind].name if kind in _BY_WIRE_ID else f"codec {kind}"
        raise CodecError(f"the update is coded by {other}, not by {codec}, as was agreed")
    if kind not in _BY_WIRE_ID:
        raise CodecError(f"the blob was coded by codec {kind}, which this version does not know")
    return _BY_WIRE_ID[kind].decode(blob, size)


def _find_codec(name: str) -> type[Codec]:
    try:
        return _REGISTRY[name]
    except KeyError:
        raise CodecError(f"there is no codec {name!r}; {did_you_mean(name, _REGISTRY)}") from None


def _describe_option_error(name: str, options: type[CodecOptions], fault: ErrorDetails) -> str:
    """Return one clause for one of pydantic's errors."""
    option = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        known = list(options.model_fields)
        near = did_you_mean(option, known) if known else "it has none"
        return f"the codec {name!r} has no option {option!r}; {near}"
    return f"{option} is {options.model_fields[option].description}, not {fault['input']!r}"
