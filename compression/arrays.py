"""Named arrays as one flat float32 vector, and back.

Only floating-point arrays join the vector. Integer and boolean buffers (counters, masks) are no place for a lossy code
and travel as they are, outside error feedback. So do the running statistics of batch normalisation: a variance that is
updated by a part of its steps, or on the scale of another's, may fall below zero, and the model's outputs become NaN.
"""

from collections.abc import Mapping

import numpy as np

from fedglm.compression.codec import CodecError
from fedglm.compression.layout import Layout

STATISTICS = frozenset({"running_mean", "running_var", "moving_mean", "moving_variance"})
"""Last parts of the names of running statistics, in PyTorch and in Keras."""


def float_layout(arrays: Mapping[str, np.ndarray]) -> Layout:
    """Return the layout of the arrays to code, sorted by name, so that both ends agree whatever the transport's order.

    Raises:
        CodecError: No array is floating-point.
    """
    names = tuple(sorted(name for name, array in arrays.items() if _is_coded(name, array)))
    if not names:
        raise CodecError("no floating-point array to code among: " + (", ".join(sorted(arrays)) or "none at all"))
    return Layout(names=names, shapes=tuple(arrays[name].shape for name in names))


def _is_coded(name: str, array: np.ndarray) -> bool:
    statistic = name.replace("/", ".").rpartition(".")[2] in STATISTICS
    return np.issubdtype(array.dtype, np.floating) and not statistic


def flatten(arrays: Mapping[str, np.ndarray], layout: Layout) -> np.ndarray:
    """Concatenate the layout's arrays into one vector of shape (layout.size,), float32.

    Raises:
        CodecError: An array is missing or has another shape.
    """
    for name, shape in zip(layout.names, layout.shapes, strict=True):
        if name not in arrays or arrays[name].shape != shape:
            actual = arrays[name].shape if name in arrays else "nothing"
            raise CodecError(f"array {name!r}: shape {shape} expected, found {actual}")
    parts = [np.asarray(arrays[name], dtype=np.float32).reshape(-1) for name in layout.names]
    return np.concatenate(parts)


def unflatten(vector: np.ndarray, layout: Layout, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Split `vector`, shape (layout.size,), into the layout's arrays, by name, with the dtypes of `like`."""
    slices = layout.slices()
    return {
        name: vector[slices[name]].reshape(shape).astype(like[name].dtype)
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }
