"""How a model's tensors lie in one flat vector, and the hash by which two ends know that they mean the same."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fedglm.compression.errors import CodecError

MAX_TEXT = 1 << 24
"""Characters of JSON that `Layout.from_json` reads."""
MAX_TENSORS = 1 << 16
MAX_NAME = 1024
MAX_DIMENSIONS = 64
MAX_SIZE = 1 << 40
"""Elements of the largest vector that a layout or a blob may speak of."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of float32 tensors that lie end to end, each in C order, in one flat vector.

    Attributes:
        names: one a tensor, unique.
        shapes: one a tensor; `()` is a scalar, every dimension is at least 1.

    Raises:
        CodecError: no tensors, a name twice, a dimension below 1, or more than the limits of this module.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.names) <= MAX_TENSORS or len(self.names) != len(self.shapes):
            raise CodecError(
                f"a layout has one shape a name and 1 to {MAX_TENSORS} of both, "
                f"not {len(self.names)} names and {len(self.shapes)} shapes"
            )
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "shapes", tuple(_checked_shape(shape) for shape in self.shapes))
        seen: set[str] = set()
        for name in self.names:
            if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
                raise CodecError(f"a tensor's name is a text of 1 to {MAX_NAME} characters")
            if name in seen:
                raise CodecError(f"the layout names the tensor {name!r} twice")
            seen.add(name)
        if self.size > MAX_SIZE:
            raise CodecError(f"the layout has {self.size} elements; the limit is {MAX_SIZE}")

    @cached_property
    def size(self) -> int:
        """Elements of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()

    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the flat vector, in the layout's order."""
        slices: dict[str, slice] = {}
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            stop = start + math.prod(shape)
            slices[name] = slice(start, stop)
            start = stop
        return slices

    def to_json(self) -> str:
        """The canonical text, ASCII without spaces: `[["embed.weight",[256,64]],["scale",[]]]`."""
        return json.dumps(list(zip(self.names, self.shapes, strict=True)), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        """Read what `to_json` wrote, from a stranger too.

        Raises:
            CodecError: text that is too long, no JSON, or no layout.
        """
        if len(text) > MAX_TEXT:
            raise CodecError(f"a layout of {len(text)} characters; the limit is {MAX_TEXT}")
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise CodecError("the layout is not JSON") from exc
        if not isinstance(entries, list) or not all(
            isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], list) for entry in entries
        ):
            raise CodecError("a layout in JSON is a list of [name, shape] pairs")
        return cls(tuple(name for name, _ in entries), tuple(tuple(shape) for _, shape in entries))


def _checked_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """`shape` as a plain tuple; a bool or a float is no dimension."""
    dimensions = tuple(shape)
    if len(dimensions) > MAX_DIMENSIONS:
        raise CodecError(f"a tensor of {len(dimensions)} dimensions; the limit is {MAX_DIMENSIONS}")
    for dimension in dimensions:
        if type(dimension) is not int or not 1 <= dimension <= MAX_SIZE:
            raise CodecError(f"a tensor's dimension is a whole number from 1 to {MAX_SIZE}, not {dimension!r}")
    return dimensions
