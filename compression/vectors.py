"""The type that all codecs work on: a flat, finite, non-empty float32 vector."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]

Vector: TypeAlias = npt.NDArray[np.float32]
Positions: TypeAlias = npt.NDArray[np.int64]


def check_vector(vector: Vector, what: str, size: int | None = None) -> Vector:
    """Check a vector and return it contiguous.

    One NaN that gets into a residual or an accumulator stays there for good, so every entry point calls this.

    Args:
        vector: Shape (n,), float32, finite, n > 0.
        what: Name of the vector in the error.
        size: Required number of elements; None takes any.

    Raises:
        ValueError: The vector has another dtype or shape or no elements, or holds NaN or infinity; the message gives
            the value and its position.
    """
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        actual = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise ValueError(f"{what} must be a flat float32 numpy vector, not {actual}")
    if vector.size == 0:
        raise ValueError(f"{what} is empty")
    if size is not None and vector.size != size:
        raise ValueError(f"{what} has {vector.size} elements, not {size}")
    finite = np.isfinite(vector)
    if not finite.all():
        position = int(np.argmin(finite))
        raise ValueError(f"{what} holds {vector[position]} at position {position}")
    return np.ascontiguousarray(vector)
