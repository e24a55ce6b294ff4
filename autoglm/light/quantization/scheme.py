"""Schemes: how the numbers of a matrix are written as small integers with scales."""

from __future__ import annotations

import math
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Codes = Literal["int8", "int4", "int3", "int2", "ternary", "sparse-ternary"]
"""Set of codes; `sparse-ternary` has one zero in every four columns."""

_BITS: Final = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
SPARSE_GROUP: Final = 4
"""Columns of which `sparse-ternary` sets one to zero: 4 places x 2^3 signs are 32 patterns, 5 bits for 4 weights."""


class Scheme(BaseModel):
    """How a matrix is quantized.

    Attributes:
        codes: Set of codes. `sparse-ternary` is 3:4 sparse ternary ("Sherry", ACL 2026): in every four columns the
            smallest weight is 0, and the others are signs.
        block: Columns of a row that share a scale; `row` is one scale a row, `tensor` one for the matrix.
        symmetric: Whether zero is written as code 0; otherwise each block has a zero point (Jacob et al.,
            arXiv:1712.05877, section 2.1). Ternary codes are symmetric.
        zeros: Share of zeros that `ternary` starts with, over the matrix; None takes the threshold of each block that
            leaves the least squared error (Li et al., arXiv:1605.04711, section 2.2).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    codes: Codes = "int4"
    block: int | Literal["row", "tensor"] = 32
    symmetric: bool = True
    zeros: float | None = Field(default=None, ge=0, le=0.95)

    @model_validator(mode="after")
    def _check_fields(self) -> Self:
        if isinstance(self.block, int) and self.block < 1:
            raise ValueError(f"a block of {self.block} columns is empty: block is at least 1, `row` or `tensor`")
        if not self.symmetric and self.is_ternary:
            raise ValueError(f"{self.codes} codes are symmetric: drop symmetric = false")
        if self.zeros is not None and self.codes != "ternary":
            raise ValueError(f"a share of zeros belongs to ternary codes, not to {self.codes}: drop zeros")
        if self.codes == "sparse-ternary" and isinstance(self.block, int) and self.block % SPARSE_GROUP:
            raise ValueError(f"sparse-ternary blocks hold whole groups of {SPARSE_GROUP} columns, not {self.block}")
        return self

    @property
    def is_ternary(self) -> bool:
        """Whether the codes are -1, 0 and 1."""
        return self.codes in ("ternary", "sparse-ternary")

    @property
    def low(self) -> int:
        """Least code."""
        return -1 if self.is_ternary else -(1 << (_BITS[self.codes] - 1))

    @property
    def high(self) -> int:
        """Greatest code."""
        return 1 if self.is_ternary else (1 << (_BITS[self.codes] - 1)) - 1

    def columns_per_scale(self, columns: int) -> int:
        """Return the number of columns that share a scale, in a matrix of that many."""
        return min(self.block, columns) if isinstance(self.block, int) else columns

    def bits_per_weight(self, rows: int, columns: int) -> float:
        """Return the bits a weight of a packed matrix: codes, FP16 scales and zero points; without an entropy coder.

        Five ternary codes fit in a byte (3^5 = 243); a zero point takes as many bits as a code.
        """
        code = {"ternary": 8 / 5, "sparse-ternary": 5 / SPARSE_GROUP}.get(self.codes) or float(_BITS[self.codes])
        scales = 1 if self.block == "tensor" else rows * math.ceil(columns / self.columns_per_scale(columns))
        return code + scales * (16 + (0 if self.symmetric else code)) / (rows * columns)

    def __str__(self) -> str:
        block = self.block if isinstance(self.block, str) else f"block {self.block}"
        extras = ("" if self.symmetric else ", asymmetric") + (f", {self.zeros:.0%} zeros" if self.zeros else "")
        return f"{self.codes} ({block}{extras})"


STEPS: Final[tuple[Codes, ...]] = ("sparse-ternary", "ternary", "int2", "int3", "int4", "int8")
"""From the fewest bits to the most."""


def step_up(scheme: Scheme) -> Scheme | None:
    """Return the scheme with the next more bits, of the same blocks; None after INT8."""
    place = STEPS.index(scheme.codes) + 1
    if place == len(STEPS):
        return None
    return Scheme(codes=STEPS[place], block=scheme.block, symmetric=scheme.symmetric)
