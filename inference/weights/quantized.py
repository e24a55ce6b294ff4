"""Quantized matrices in memory: what quantizers make, a release stores, and the runtime fills its graph from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fedglm.inference.errors import InferenceError


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedMatrix:
    """Integer codes with a scale, and possibly a zero point, for each block of a row.

    ``value[r, c] = (codes[r, c] - zeros[r, c // block]) * scales[r, c // block]`` (Jacob et al., arXiv:1712.05877,
    equation 1, per block). Rows are the outputs of a Linear or the tokens of an embedding, columns its inputs.

    Attributes:
        codes: Codes, (rows, columns), int8.
        scales: Scales, (rows, ceil(columns / block)), float32, positive or 0, each exactly a float16.
        zeros: Zero points in the unit of the codes, same shape as the scales, int8; None where all are 0.
        block: Number of columns that share a scale; the number of columns itself for one scale a row.
        low: Least code that the scheme can write.
        high: Greatest code that the scheme can write.

    Raises:
        InferenceError: Shapes or dtypes do not fit, a code is outside of `low` to `high`, or a scale is no float16.
    """

    codes: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    zeros: npt.NDArray[np.int8] | None = None
    block: int
    low: int
    high: int

    def __post_init__(self) -> None:
        codes, scales = self.codes, self.scales
        if codes.ndim != 2 or codes.dtype != np.int8 or scales.dtype != np.float32:
            raise InferenceError("a quantized matrix has int8 codes in two dimensions and float32 scales")
        if not (-128 <= self.low <= self.high <= 127 and self.block >= 1):
            raise InferenceError(f"no int8 code runs from {self.low} to {self.high} in blocks of {self.block}")
        blocks = (codes.shape[0], -(-codes.shape[1] // self.block))
        if scales.shape != blocks or (self.zeros is not None and self.zeros.shape != blocks):
            raise InferenceError(
                f"{blocks} scales and zero points belong to {codes.shape} codes in blocks of {self.block}"
            )
        if self.zeros is not None and self.zeros.dtype != np.int8:
            raise InferenceError("zero points are int8")
        if codes.size and (codes.min() < self.low or codes.max() > self.high):
            raise InferenceError(f"codes run from {codes.min()} to {codes.max()}, not within {self.low} to {self.high}")
        with np.errstate(over="ignore"):
            halves = scales.astype(np.float16)
        if not (np.isfinite(halves).all() and (scales >= 0).all() and (halves == scales).all()):
            raise InferenceError("scales must be finite, not negative, and exactly representable in float16")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.codes.shape[0], self.codes.shape[1])

    @property
    def levels(self) -> int:
        """Number of codes that the scheme can write: 3 for ternary, 16 for INT4."""
        return self.high - self.low + 1

    def dequantize(self) -> npt.NDArray[np.float32]:
        """Return the values, (rows, columns), float32; each is one rounded product."""
        columns = self.codes.shape[1]
        codes = self.codes.astype(np.float32)
        if self.zeros is not None:
            codes -= np.repeat(self.zeros.astype(np.float32), self.block, axis=1)[:, :columns]
        return codes * np.repeat(self.scales, self.block, axis=1)[:, :columns]
