"""The layout of a model's tensors in one flat vector, and its hash, by which two ends check that they agree."""

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from fedglm.compression.errors import CodecError

MAX_TEXT = 1 << 24
"""Maximum characters of JSON that `Layout.from_json` reads."""
MAX_TENSORS = 1 << 16
MAX_NAME = 1024
MAX_DIMENSIONS = 64
MAX_SIZE = 1 << 40
"""Maximum number of elements of a vector in a layout or a blob."""


@dataclass(frozen=True)
class Layout:
    """Names and shapes of float32 tensors that lie end to end, each in C order, in one flat vector.

    Attributes:
        names: Names of the tensors, unique.
        shapes: Shapes of the tensors; `()` is a scalar, every dimension is at least 1.

    Raises:
        CodecError: There are no tensors, a name occurs twice, a dimension is below 1, or a limit of this module is
            exceeded.
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
        object.__setattr__(self, "shapes", tuple(_check_shape(shape) for shape in self.shapes))
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
        """Number of elements of the flat vector."""
        return sum(math.prod(shape) for shape in self.shapes)

    @cached_property
    def sha256(self) -> str:
        """Hex SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()

    def slices(self) -> dict[str, slice]:
        """Return each tensor's slice of the flat vector, by name, in the layout's order."""
        slices: dict[str, slice] = {}
        start = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            stop = start + math.prod(shape)
            slices[name] = slice(start, stop)
            start = stop
        return slices

    def to_json(self) -> str:
        """Return the canonical JSON, ASCII without spaces: `[["embed.weight",[256,64]],["scale",[]]]`."""
        return json.dumps(list(zip(self.names, self.shapes, strict=True)), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Layout":
        """Parse the untrusted text of a layout, as `to_json` writes it.

        Raises:
            CodecError: The text is too long, is not JSON, or is no layout.
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


def _check_shape(shape: Iterable[int]) -> tuple[int, ...]:
    """Return `shape` as a plain tuple; a bool or a float is no dimension."""
    dimensions = tuple(shape)
    if len(dimensions) > MAX_DIMENSIONS:
        raise CodecError(f"a tensor of {len(dimensions)} dimensions; the limit is {MAX_DIMENSIONS}")
    for dimension in dimensions:
        if type(dimension) is not int or not 1 <= dimension <= MAX_SIZE:
            raise CodecError(f"a tensor's dimension is a whole number from 1 to {MAX_SIZE}, not {dimension!r}")
    return dimensions
