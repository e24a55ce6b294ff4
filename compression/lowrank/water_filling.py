"""How finely to quantize what: one step for every factor and every element.

Where error falls as fast with one more bit here as there, nothing is won by moving bits: every entry of every factor
(with the singular value in) then errs by the same amount, and a direction too weak for that is left out. That is
reverse water-filling (Cover and Thomas, "Elements of Information Theory", section 10.3) over all tensors and singular
values at once, and it leaves a single number to choose: the step.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fedglm.compression.kernels.factors import CLASSES, MAX_LEVEL, MAX_OCTAVE, Levels
from fedglm.compression.lowrank.factors import MIN_EXPONENT, STEPS, Factors, Frame
from fedglm.compression.lowrank.spectrum import Matrix, spectrum
from fedglm.compression.vectors import Vector

WORTH = 0.6
"""Singular value, in steps times the root of the longer side, from which a component is worth its bits (measured)."""
ROUNDING = 0.4
"""Added before a magnitude is cut to whole steps: below one half, since zeros cost least (measured)."""
LARGEST = np.float32(2.0**120)
"""Magnitude that is sent for all beyond it, so that no sum of factors leaves float32."""
_FINEST = 2.0**-20
"""Of the largest singular value: no step is smaller, so that the sums of the factors stay exact."""
_PLAIN_LEVELS = 127
"""Of the largest element, where there is no matrix to choose the step by."""
_FINER = 8
"""How much finer than its limit the weakest component may be quantized, where a rank is given and not a size."""
_BITS_AN_ENTRY = 2
"""About what an entry of a factor takes; where the search for a budget starts."""
_MIN_DIRECTIONS = 16
"""Looked at in each matrix, at the least; and four for each component that it gets on average."""


class Analysis:
    """A vector's matrices by their singular values, ready to be quantized with any step.

    Args:
        vector: shape (n,), float32, finite, with magnitudes up to `LARGEST`.
        frame: where its matrices are.
        rank: components that a matrix will get on average, more or less; it bounds how many are looked at.
    """

    def __init__(self, vector: Vector, frame: Frame, rank: float) -> None:
        # Brought to below one by a power of two, so that nothing on the way overflows or vanishes.
        largest = float(np.abs(vector).max())
        _, self._exponent = math.frexp(largest)
        self._vector, self._frame = np.ldexp(vector, -self._exponent), frame
        directions = max(_MIN_DIRECTIONS, math.ceil(4 * rank))
        self._matrices: list[Matrix] = []
        for start, rows, columns in frame.matrices:
            matrix = self._vector[start : start + rows * columns].reshape(rows, columns)
            self._matrices.append(matrix if rows >= columns else matrix.T)
        self._spectra = [
            spectrum(matrix, min(directions, limit))
            for matrix, limit in zip(self._matrices, frame.limits.tolist(), strict=True)
        ]
        self._peak = max((float(np.abs(self._vector[part]).max()) for part in frame.plain), default=0.0)
        largest = max((float(values[0]) for values, _ in self._spectra if values.size), default=0.0)
        self.finest = max(largest * _FINEST, 2 * self._peak / MAX_LEVEL)
        strengths = [values / math.sqrt(len(m)) for m, (values, _) in zip(self._matrices, self._spectra, strict=True)]
        entries = [np.full(len(each), sum(m.shape)) for m, each in zip(self._matrices, strengths, strict=True)]
        self._strengths = np.concatenate([np.zeros(0), *strengths])
        self._entries = np.concatenate([np.zeros(0, np.int64), *entries])

    @property
    def coarsest(self) -> float:
        """A step at which nothing is sent; 0 for a vector of zeros."""
        strongest: float = self._strengths.max(initial=self._peak)
        return 2 * strongest / WORTH

    def absolute(self, step: float) -> float:
        """A step in the units of the vector that was given."""
        return math.ldexp(max(step, self.finest), self._exponent)

    def step_of_rank(self, rank: float) -> float:
        """The finest step that keeps no more than `rank` components a matrix on average, weighted by their entries.

        Where the rest is much weaker than the weakest of them, no finer than tells that one's entries well apart.
        """
        order = np.argsort(-self._strengths, kind="stable")
        strengths = self._strengths[order]
        count = int(np.searchsorted(np.cumsum(self._entries[order]), rank * self._frame.sides.sum(), side="right"))
        if count == 0:
            return max(self.coarsest * WORTH / 2 / _PLAIN_LEVELS, self.finest)
        next_one = float(strengths[count]) if count < strengths.size else 0.0
        return max(next_one / WORTH, float(strengths[count - 1]) / WORTH / _FINER, self.finest)

    def quantize(self, step: float) -> Factors:
        """The whole numbers for a step; no finer than what stays exact."""
        step = max(step, self.finest)
        if step == 0:  # nothing but zeros
            step = 1.0
        least = MIN_EXPONENT - self._exponent
        log_step = max(round(math.log2(step)), STEPS[0] - self._exponent)
        counts: list[int] = []
        octaves: list[int] = []
        levels: list[Levels] = [np.zeros(0, np.int32)]
        for matrix, (values, vectors) in zip(self._matrices, self._spectra, strict=True):
            count = int(np.count_nonzero(values > WORTH * step * math.sqrt(len(matrix))))
            exponents = _exponents(values[:count], step, log_step, least)
            exponents, factors = _quantized(matrix, values[:count], vectors[:count], exponents)
            counts.append(len(exponents))
            octaves += (log_step - exponents).tolist()
            levels += factors
        plain: list[int] = []
        for part in self._frame.plain:
            numbers = _whole(np.ldexp(self._vector[part].astype(np.float64), -log_step))
            plain.append(_class(numbers))
            if plain[-1]:
                levels.append(numbers)
        return Factors(
            log_step + self._exponent,
            np.array(counts, np.int64),
            np.array(octaves, np.int64),
            np.array(plain, np.int64),
            np.concatenate(levels),
        )


def rank_of(max_bytes: int, frame: Frame) -> float:
    """About how many components a matrix will get on average from a budget."""
    rank = 8 * max_bytes / (_BITS_AN_ENTRY * max(int(frame.sides.sum()), 1))
    return min(rank, float(frame.limits.max(initial=1)))


def _exponents(values: npt.NDArray[np.float64], step: float, log_step: int, least: int) -> npt.NDArray[np.int64]:
    """Of two for each component: rising, and such that the octaves are from 0 to MAX_OCTAVE."""
    exponents = np.rint(np.log2(step * step / values)).astype(np.int64)
    exponents = np.clip(exponents, max(log_step - MAX_OCTAVE, least), max(log_step, least))
    rising: npt.NDArray[np.int64] = np.maximum.accumulate(exponents)
    return rising


def _quantized(
    matrix: Matrix,
    values: npt.NDArray[np.float64],
    vectors: npt.NDArray[np.float64],
    exponents: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], list[Levels]]:
    """Exponents and factors of the components that are not zero: of each the shorter factor, then the longer.

    `p q^T 2**e` has steps a for p (the singular value in) and b for q, a b = 2**e. Best would be a = step and
    b = step / value: each takes half of what rounding e has added or taken away.
    """
    q = _whole(vectors * np.sqrt(values / np.exp2(exponents))[:, None])
    kept = q.any(axis=1)
    while kept.any():
        q, exponents = q[kept], exponents[kept]
        # The best longer factors for the shorter ones as they were rounded, not as they were.
        whole = q.astype(np.float64)
        image = (matrix @ whole.T.astype(np.float32)).astype(np.float64)
        p = _whole(np.linalg.solve(whole @ whole.T, image.T) * np.exp2(-exponents)[:, None])
        kept = p.any(axis=1)
        if kept.all():
            break
    else:
        return exponents[:0], []
    return exponents, [factor for pair in zip(q, p, strict=True) for factor in pair]


def _whole(values: npt.NDArray[Any]) -> Levels:
    magnitudes = np.minimum(np.floor(np.abs(values) + ROUNDING), MAX_LEVEL)
    whole: Levels = np.copysign(magnitudes, values).astype(np.int32)
    return whole


def _class(levels: Levels) -> int:
    """By their mean magnitude; 0 for zeros alone."""
    if not levels.any():
        return 0
    mean = float(np.abs(levels).mean()) + 0.25
    return max(1, min(CLASSES - 1, round(2 * math.log2(mean)) + 2))
