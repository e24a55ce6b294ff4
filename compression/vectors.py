"""The one shape everything here works on: a flat, finite, non-empty float32 vector."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Flags = npt.NDArray[np.bool_]

Vector: TypeAlias = npt.NDArray[np.float32]
Positions: TypeAlias = npt.NDArray[np.int64]


def checked(vector: Vector, what: str, size: int | None = None) -> Vector:
    """Return `vector` as a contiguous float32 vector, or say what it is instead.

    One NaN that gets into a residual or an accumulator stays there for good, so every door has this check.

    Args:
        vector: shape (n,), float32, finite, n > 0.
        what: the vector's name in the error.
        size: the n that it must have; None takes any.

    Raises:
        ValueError: another dtype or shape, no elements, or NaN or infinity (which and where).
    """
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.ndim != 1:
        found = f"{vector.dtype} {vector.shape}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise ValueError(f"{what} must be a flat float32 numpy vector, not {found}")
    if vector.size == 0:
        raise ValueError(f"{what} is empty")
    if size is not None and vector.size != size:
        raise ValueError(f"{what} has {vector.size} elements, not {size}")
    finite = np.isfinite(vector)
    if not finite.all():
        where = int(np.argmin(finite))
        raise ValueError(f"{what} holds {vector[where]} at position {where}")
    return np.ascontiguousarray(vector)
