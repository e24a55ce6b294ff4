"""Bit allocation by reverse water-filling: one quantization step for every factor and every element.

The error is smallest where one more bit reduces it equally everywhere: every entry of every factor (with the singular
value in) then has the same error, and a direction too weak for that is left out. That is reverse water-filling (Cover
and Thomas, "Elements of Information Theory", section 10.3) over all tensors and singular values at once, and it leaves
a single number to choose: the step.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from fedglm.compression.kernels.factors import CLASSES, MAX_LEVEL, MAX_OCTAVE, Levels
from fedglm.compression.lowrank.factors import MIN_EXPONENT, STEPS, Factors, Frame
from fedglm.compression.lowrank.spectrum import Matrix, compute_spectrum
from fedglm.compression.vectors import Vector

WORTH = 0.6
"""Singular value, in steps times the root of the longer side, from which a component is worth its bits (measured)."""
ROUNDING = 0.4
"""Added before a magnitude is truncated to whole steps: below one half, since zeros cost least (measured)."""
LARGEST = np.float32(2.0**120)
"""Magnitude to which larger ones are clipped, so that no sum of factors overflows float32."""
_FINEST = 2.0**-20
"""Smallest step, as a share of the largest singular value, so that the sums of the factors stay exact."""
_PLAIN_LEVELS = 127
"""Largest element in steps, where there is no matrix to choose the step by."""
_FINER = 8
"""Maximum factor by which the weakest component is quantized finer than its threshold, where a rank is given and not a
size."""
_BITS_PER_ENTRY = 2
"""Approximate bits of an entry of a factor, from which the search for a budget starts."""
_MIN_DIRECTIONS = 16
"""Minimum number of directions computed for each matrix; else four for each component that it gets on average."""


class Analysis:
    """The singular values of a vector's matrices, from which it can be quantized with any step.

    Args:
        vector: Shape (n,), float32, finite, with magnitudes up to `LARGEST`.
        frame: The vector's matrices.
        rank: Expected average number of components per matrix; it bounds how many are computed.

    Attributes:
        finest: Smallest step with which the sums of the factors stay exact.
    """

    def __init__(self, vector: Vector, frame: Frame, rank: float) -> None:
        # Scaled to below one by a power of two, so that no intermediate value overflows or underflows.
        largest = float(np.abs(vector).max())
        _, self._exponent = math.frexp(largest)
        self._vector, self._frame = np.ldexp(vector, -self._exponent), frame
        directions = max(_MIN_DIRECTIONS, math.ceil(4 * rank))
        self._matrices: list[Matrix] = []
        for start, rows, columns in frame.matrices:
            matrix = self._vector[start : start + rows * columns].reshape(rows, columns)
            self._matrices.append(matrix if rows >= columns else matrix.T)
        self._spectra = [
            compute_spectrum(matrix, min(directions, limit))
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
        """Step at which nothing is sent; 0 for a vector of zeros."""
        strongest: float = self._strengths.max(initial=self._peak)
        return 2 * strongest / WORTH

    def to_vector_units(self, step: float) -> float:
        """Return a step in the units of the original vector."""
        return math.ldexp(max(step, self.finest), self._exponent)

    def step_for_rank(self, rank: float) -> float:
        """Return the finest step that keeps at most `rank` components per matrix on average, weighted by their entries.

        Where the other components are much weaker than the weakest of these, it is bounded by `_FINER`.
        """
        order = np.argsort(-self._strengths, kind="stable")
        strengths = self._strengths[order]
        count = int(np.searchsorted(np.cumsum(self._entries[order]), rank * self._frame.sides.sum(), side="right"))
        if count == 0:
            return max(self.coarsest * WORTH / 2 / _PLAIN_LEVELS, self.finest)
        next_one = float(strengths[count]) if count < strengths.size else 0.0
        return max(next_one / WORTH, float(strengths[count - 1]) / WORTH / _FINER, self.finest)

    def quantize(self, step: float) -> Factors:
        """Quantize with a step, or with `finest` where that is larger."""
        step = max(step, self.finest)
        if step == 0:  # nothing but zeros
            step = 1.0
        min_exponent = MIN_EXPONENT - self._exponent
        log_step = max(round(math.log2(step)), STEPS[0] - self._exponent)
        counts: list[int] = []
        octaves: list[int] = []
        levels: list[Levels] = [np.zeros(0, np.int32)]
        for matrix, (values, vectors) in zip(self._matrices, self._spectra, strict=True):
            count = int(np.count_nonzero(values > WORTH * step * math.sqrt(len(matrix))))
            exponents = _choose_exponents(values[:count], step, log_step, min_exponent)
            exponents, factors = _quantize_components(matrix, values[:count], vectors[:count], exponents)
            counts.append(len(exponents))
            octaves += (log_step - exponents).tolist()
            levels += factors
        plain: list[int] = []
        for part in self._frame.plain:
            numbers = _round_to_levels(np.ldexp(self._vector[part].astype(np.float64), -log_step))
            plain.append(_choose_class(numbers))
            if plain[-1]:
                levels.append(numbers)
        return Factors(
            log_step + self._exponent,
            np.array(counts, np.int64),
            np.array(octaves, np.int64),
            np.array(plain, np.int64),
            np.concatenate(levels),
        )


def estimate_rank(max_bytes: int, frame: Frame) -> float:
    """Estimate how many components a matrix gets on average from a budget of `max_bytes`."""
    rank = 8 * max_bytes / (_BITS_PER_ENTRY * max(int(frame.sides.sum()), 1))
    return min(rank, float(frame.limits.max(initial=1)))


def _choose_exponents(
    values: npt.NDArray[np.float64], step: float, log_step: int, min_exponent: int
) -> npt.NDArray[np.int64]:
    """Return each component's exponent of two, ascending, and such that the octaves are from 0 to MAX_OCTAVE."""
    exponents = np.rint(np.log2(step * step / values)).astype(np.int64)
    exponents = np.clip(exponents, max(log_step - MAX_OCTAVE, min_exponent), max(log_step, min_exponent))
    rising: npt.NDArray[np.int64] = np.maximum.accumulate(exponents)
    return rising


def _quantize_components(
    matrix: Matrix,
    values: npt.NDArray[np.float64],
    vectors: npt.NDArray[np.float64],
    exponents: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], list[Levels]]:
    """Quantize components; return exponents and factors (the shorter, then the longer) of those that are not zero.

    `p q^T 2**e` has steps a for p (the singular value in) and b for q, a b = 2**e. Optimal would be a = step and
    b = step / value; each takes half of the error of rounding e.
    """
    q = _round_to_levels(vectors * np.sqrt(values / np.exp2(exponents))[:, None])
    kept = q.any(axis=1)
    while kept.any():
        q, exponents = q[kept], exponents[kept]
        # The longer factors that are optimal for the rounded shorter ones, not for the exact ones.
        rounded = q.astype(np.float64)
        image = (matrix @ rounded.T.astype(np.float32)).astype(np.float64)
        p = _round_to_levels(np.linalg.solve(rounded @ rounded.T, image.T) * np.exp2(-exponents)[:, None])
        kept = p.any(axis=1)
        if kept.all():
            break
    else:
        return exponents[:0], []
    return exponents, [factor for pair in zip(q, p, strict=True) for factor in pair]


def _round_to_levels(values: npt.NDArray[Any]) -> Levels:
    magnitudes = np.minimum(np.floor(np.abs(values) + ROUNDING), MAX_LEVEL)
    levels: Levels = np.copysign(magnitudes, values).astype(np.int32)
    return levels


def _choose_class(levels: Levels) -> int:
    """Return the class of a plain tensor's levels by their mean magnitude; 0 for zeros alone."""
    if not levels.any():
        return 0
    mean = float(np.abs(levels).mean()) + 0.25
    return max(1, min(CLASSES - 1, round(2 * math.log2(mean)) + 2))
