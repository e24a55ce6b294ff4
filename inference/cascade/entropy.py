"""How unsure a prediction is: the entropy of its probabilities."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError

TOLERANCE = 1e-3
"""By how much the sum of a row of float32 probabilities may miss 1."""


def normalized_entropy(probabilities: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return Shannon entropy over its maximum, ln C: 0 for a certain prediction, 1 for a uniform one.

    Normalized, so that a threshold means the same for any number of classes.

    Args:
        probabilities: Probabilities of C classes, (n, C), C at least 2.

    Returns:
        Entropies, (n,), float64, within 0 to 1.

    Raises:
        InferenceError: There are not two classes, or a row is no distribution.
    """
    rows = np.asarray(probabilities, dtype=np.float64)
    if rows.ndim != 2 or rows.shape[1] < 2:
        raise InferenceError(f"an entropy needs probabilities (n, C) of at least two classes, not {rows.shape}")
    if not (rows >= 0).all() or (abs(rows.sum(axis=1) - 1) > TOLERANCE).any():
        raise InferenceError("probabilities must be 0 or more and sum to 1 in each row")
    logarithms = np.log(rows, out=np.zeros_like(rows), where=rows > 0)
    entropies: npt.NDArray[np.float64] = -(rows * logarithms).sum(axis=1) / np.log(rows.shape[1])
    return entropies.clip(0, 1)
