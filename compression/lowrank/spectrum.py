"""The strongest directions of a matrix: right singular vectors and singular values, as many as are worth their time.

For a small side the Gram matrix gives them all. For a larger one block power iteration from a fixed random start gives
the first few (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4; PowerSGD, arXiv 1905.13727, uses one step of
it). Starting from fixed numbers, not from the last round's factors, makes it a function of the matrix alone: the same
bits on one machine, but not on another kind of processor.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Matrix: TypeAlias = npt.NDArray[np.float32]
Spectrum: TypeAlias = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]

SMALL_SIDE = 192
"""Columns up to which all directions are computed."""
_POWER_STEPS = 3
_SPARE = 8
"""Directions iterated beyond those asked for; they make the last of those converge."""


def spectrum(matrix: Matrix, count: int) -> Spectrum:
    """The `count` or fewer strongest directions of `matrix` (rows, columns), which has no more columns than rows.

    Returns singular values, falling, shape (c,), and right singular vectors, shape (c, columns), orthonormal. Those of
    zero are left out.
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
    # Gram matrices are float32: below this a value is rounding alone.
    known = squares > max(float(squares[0]), 0.0) * np.finfo(np.float32).eps * columns
    return np.sqrt(squares[known]), (basis @ vectors[:, order][:, known]).T
