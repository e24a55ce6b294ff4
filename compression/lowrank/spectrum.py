"""The largest singular values of a matrix and their right singular vectors.

For a small side the Gram matrix gives all of them. For a larger one block power iteration from a fixed random start
gives the first few (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4; PowerSGD, arXiv 1905.13727, uses one
step of it). Starting from fixed numbers, not from the last round's factors, makes the result a function of the matrix
alone: the same bits on one machine, but not on another kind of processor.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[np.float32]
Spectrum: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

SMALL_SIDE = 192
"""Number of columns up to which all directions are computed."""
_POWER_STEPS = 3
_SPARE = 8
"""Number of directions iterated beyond those requested, so that the last of those converge."""


def compute_spectrum(matrix: Matrix, count: int) -> Spectrum:
    """Compute the `count` or fewer strongest directions of `matrix` (rows, columns), with no more columns than rows.

    Returns the singular values, descending, shape (c,), float64, and the right singular vectors, shape (c, columns),
    float64, orthonormal. Singular values of zero are left out.
    """
    columns = matrix.shape[1]
    if columns <= max(SMALL_SIDE, count + _SPARE):
        values, vectors = np.linalg.eigh((matrix.T @ matrix).astype(np.float64))
        basis = np.eye(columns)
    else:
        start = np.random.default_rng(columns).standard_normal((columns, count + _SPARE), dtype=np.float32)
        for _ in range(_POWER_STEPS):
            start = np.linalg.qr(matrix.T @ (matrix @ start))[0]
        basis = start.astype(np.float64)
        image = matrix @ start
        values, vectors = np.linalg.eigh((image.T @ image).astype(np.float64))
    order = slice(None, -count - 1, -1)
    squares = values[order]
    # Gram matrices are float32: a value below this is rounding error.
    known = squares > max(float(squares[0]), 0.0) * np.finfo(np.float32).eps * columns
    return np.sqrt(squares[known]), (basis @ vectors[:, order][:, known]).T
