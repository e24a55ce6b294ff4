"""How much of each record's gradient is in an update: ridge regression of the update on the gradients.

Gradients of one task are alike, so that an update lies along those of records that it was not made of, too. Regressed
on all of them at once, it falls apart into shares. Of an embedding, a token's row is moved by the records that hold the
token alone: a rare token's row is small, and tells more than a common one's, so that every row is given one scale.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

_RIDGE: Final = 1e-3
"""Of the mean square of a gradient's length."""
_BLOCK: Final = 2**16


class GradientShares:
    """Reads shares off updates.

    Args:
        gradients: (n, values) float32, one a record; overwritten.
        width: Values that are scaled together: of a row of an embedding. It divides `values`.
    """

    def __init__(self, gradients: npt.NDArray[np.float32], width: int) -> None:
        count, values = gradients.shape
        rows = gradients.reshape(count, values // width, width)
        lengths = np.sqrt(np.einsum("nrw,nrw->r", rows, rows, dtype=np.float64) / (count * width))
        scales = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0).astype(np.float32)[:, None]
        rows *= scales
        gram = (gradients @ gradients.T).astype(np.float64)
        gram += max(_RIDGE * float(np.trace(gram)) / count, 1e-30) * np.eye(count)
        inverse = np.linalg.inv(gram).astype(np.float32)
        for start in range(0, values, _BLOCK):  # what is as large as the gradients takes their place
            block = gradients[:, start : start + _BLOCK]
            block[:] = inverse @ block
        rows *= scales
        self._readers = gradients

    def of(self, moved: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """(n,) by how much of each gradient an update of (values,) float32 went down."""
        return -(self._readers @ moved).astype(np.float64)
