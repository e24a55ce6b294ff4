"""From a vector to bytes and back: the codecs, by name.

    codec = make_codec("topk-sign", density=0.01)
    blob = codec.encode(update)                    # bytes; the same for the same update
    decode(blob, size=update.size).add_to(total, weight)

A blob says by which codec it was made, so a reader needs no settings. Its bytes are described in `wire` and in each
codec. A new codec is a class with `name`, a `wire_id` that was never used before, the model of its options, `encode`
and `decode`, and a line in the registry.
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
from fedglm.compression.wire.envelope import UPDATE, Blob, kind_of
from fedglm.core.suggestions import did_you_mean

__all__ = ["Codec", "CodecError", "FusedCodec", "Update", "codec_names", "codec_options", "decode", "make_codec"]


class Update(Protocol):
    """A decoded update; the sparse ones also have `positions` (int64, ascending) and `values` (float32)."""

    @property
    def size(self) -> int:
        """Elements of the vector."""

    @property
    def work(self) -> int:
        """What it took to decode: about so many elements of an entropy-coded vector take as long."""

    def to_dense(self) -> Vector:
        """The vector, shape (size,), float32, a copy."""

    def add_to(self, accumulator: Accumulator, weight: float) -> None:
        """Fold `weight * self` into `accumulator` of shape (size,), in place.

        A float32 or float64 accumulator gets `weight * value` in its own precision. An int64 accumulator is
        fixed-point: it gets `rint(weight * value)`, so `weight` holds the power-of-two scale, and the sum of any
        updates has the same bits in any order. Terms are bounded here; the sum is the caller's to bound.

        Raises:
            CodecError: a fixed-point term outside +-2**62; the accumulator is then as it was.
            ValueError, TypeError: an accumulator of another shape or dtype.
        """

    def max_abs(self) -> float:
        """The largest magnitude; time grows with the values sent, not with `size`."""

    def norm(self) -> float:
        """The Euclidean norm in float64; time grows with the values sent, not with `size`."""


class Codec(Protocol):
    """One way to code a vector. Settings are the coder's alone: any instance decodes what any other coded."""

    name: ClassVar[str]
    wire_id: ClassVar[int]
    options_type: ClassVar[type[CodecOptions]]

    def encode(self, update: Vector) -> bytes:
        """Code a float32 vector of shape (n,); the same vector gives the same bytes.

        On one machine, for the low-rank codecs: what they send rests on its linear algebra. What a blob says does not.

        Raises:
            ValueError: an empty vector, another dtype or shape, or NaN or infinity (which and where).
        """

    @classmethod
    def decode(cls, blob: Blob, size: int) -> Update:
        """Decode a vector of `size` elements, from a stranger too.

        Time and memory are bounded by `size` and the blob's length.

        Raises:
            CodecError: anything but a blob that this codec could have made.
        """


@runtime_checkable
class FusedCodec(Codec, Protocol):
    """A codec that adds the residual and keeps what it leaves out in the same pass in which it codes.

    It is faster, and gives the same bits, as `encode`, `decode` and a subtraction after one another.
    """

    def encode_compensated(self, delta: Vector, residual: Vector, factor: np.float32, left: Vector) -> bytes:
        """Code `delta + residual * factor`, rounded after each step, as `encode` would.

        Args:
            delta: shape (n,), float32.
            residual: shape (n,), float32, finite, contiguous.
            factor: from 0 to 1.
            left: shape (n,), float32, contiguous: is overwritten with the sum less what the blob holds of it. It shares
                no memory with the others.

        Raises:
            ValueError: a delta of another shape or with NaN or infinity (which and where), or a sum that overflows.
                What `left` then holds is not defined.
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
    """The names that `make_codec` takes."""
    return tuple(_REGISTRY)


def codec_options(name: str) -> tuple[str, ...]:
    """The options that `make_codec` takes for a codec, besides `layout`.

    Raises:
        CodecError: no codec of that name.
    """
    return tuple(_named(name).options_type.model_fields)


def make_codec(name: str, *, layout: Layout | None = None, **options: object) -> Codec:
    """Make the codec `name`.

    Args:
        name: one of `codec_names()`.
        layout: the tensors behind the vector, for codecs that look at rows and columns; the others do without.
        options: what `codec_options(name)` lists: `density` and `coder` for the sparse ones,
            `rank` for those of low rank, `max_bytes` for all but the dense ones, `overshoot` for `topk-sign`.

    Raises:
        CodecError: a name, an option or a value that does not exist, with the near ones.
    """
    codec = _named(name)
    try:
        checked = codec.options_type(**options)
    except ValidationError as exc:
        raise CodecError(_explain(name, codec.options_type, exc.errors()[0])) from exc
    build: Callable[[CodecOptions, Layout | None], Codec] = codec
    return build(checked, layout)


def decode(blob: Blob, *, size: int, codec: str | None = None) -> Update:
    """Decode a blob; what a server or a verifier uses.

    Args:
        blob: from a stranger too.
        size: elements that the update must have.
        codec: the one by which it must be coded; None takes any. Where the sender was told which, say so: codecs differ
            in the time and the memory that a blob may ask for.

    Raises:
        CodecError: no update of `size` elements made by a codec known here, or by another one.
    """
    kind = kind_of(blob, UPDATE)
    if codec is not None and kind != _named(codec).wire_id:
        other = _BY_WIRE_ID[kind].name if kind in _BY_WIRE_ID else f"codec {kind}"
        raise CodecError(f"the update is coded by {other}, not by {codec}, as was agreed")
    if kind not in _BY_WIRE_ID:
        raise CodecError(f"the blob was coded by codec {kind}, which this version does not know")
    return _BY_WIRE_ID[kind].decode(blob, size)


def _named(name: str) -> type[Codec]:
    try:
        return _REGISTRY[name]
    except KeyError:
        raise CodecError(f"there is no codec {name!r}; {did_you_mean(name, _REGISTRY)}") from None


def _explain(name: str, options: type[CodecOptions], fault: ErrorDetails) -> str:
    """One clause for one of pydantic's errors."""
    option = str(fault["loc"][0])
    if fault["type"] == "extra_forbidden":
        known = list(options.model_fields)
        near = did_you_mean(option, known) if known else "it has none"
        return f"the codec {name!r} has no option {option!r}; {near}"
    return f"{option} is {options.model_fields[option].description}, not {fault['input']!r}"
