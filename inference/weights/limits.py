"""Bounds of what a reader takes, so that a small file cannot ask for much memory or time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fedglm.inference.errors import InferenceError

_FREE_PARAMETERS: Final = 1 << 20
_PARAMETERS_PER_BYTE: Final = 64


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds of a release.

    Attributes:
        max_bytes: Maximum bytes of all its files together.
        max_parameters: Maximum number of parameters; unpacking takes up to 16 bytes each.
    """

    max_bytes: int = 1 << 29
    max_parameters: int = 1 << 28

    def check_bytes(self, size: int, what: str) -> None:
        """Check a number of bytes before they are read.

        Raises:
            InferenceError: There are too many.
        """
        if size > self.max_bytes:
            raise InferenceError(f"{what} has {size} bytes; at most {self.max_bytes} are read")

    def check_parameters(self, count: int, size: int) -> None:
        """Check a number of parameters, which `size` bytes unpack to, before memory is taken for them.

        Above a million, a byte may hold 64: an eighth of a bit each, which no model in use comes near to.

        Raises:
            InferenceError: There are too many.
        """
        if count > self.max_parameters:
            raise InferenceError(f"the weights have {count} parameters; at most {self.max_parameters} are unpacked")
        if count > _FREE_PARAMETERS + _PARAMETERS_PER_BYTE * size:
            raise InferenceError(f"weights of {size} bytes claim {count} parameters: they are damaged, or an attack")


DEFAULT_LIMITS: Final = Limits()
