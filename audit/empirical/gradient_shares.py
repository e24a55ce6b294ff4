"""How much of each record's gradient is in an update: ridge regression of the update on the gradients.

Gradients of one task are alike, so that an update has a component along the gradients of records that it was not made
from, too. Regression on all of them at once separates their shares. In an embedding, a token's row is moved only by the
records that contain the token: a rare token's row is small and reveals more than a common one's, so every row is scaled
alike.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

_RIDGE: Final = 1e-3
"""Ridge penalty, relative to the mean squared length of a gradient."""
_BLOCK: Final = 2**16


class GradientShares:
    """Computes the shares of known gradients in updates.

    Args:
        gradients: (n, values) float32, one row per record; overwritten.
        width: Values that are scaled together, such as a row of an embedding. It divides `values`.
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
        for start in range(0, values, _BLOCK):  # the result is as large as the gradients and takes their place
            block = gradients[:, start : start + _BLOCK]
            block[:] = inverse @ block
        rows *= scales
        self._readers = gradients

    def compute(self, update: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Compute how much of each gradient an update contains.

        Args:
            update: (values,) float32.

        Returns:
            (n,) float64, by how much of each gradient the update went down.
        """
        return -(self._readers @ update).astype(np.float64)
