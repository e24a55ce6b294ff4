"""Masks of batches whose shorter sequences are padded on the left: False where a position is padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Mask: TypeAlias = npt.NDArray[np.bool_]
"""(B, length); None in its place says that no position is padding."""


def simplify(mask: Mask) -> Mask | None:
    """Return None for a mask of no padding."""
    return None if mask.all() else mask


def cut_mask(mask: Mask | None, kept: npt.NDArray[np.int64] | tuple[slice, slice]) -> Mask | None:
    """Return the mask of some sequences, or of some positions of all; its memory is its own."""
    return None if mask is None else simplify(mask[kept].copy())


def join_masks(masks: Sequence[Mask | None], shapes: Sequence[tuple[int, int]]) -> Mask | None:
    """Return the mask of several batches as one, in order; the shorter are padded on the left.

    Args:
        masks: Mask of each batch.
        shapes: (B, length) of each batch.
    """
    longest = max(length for _, length in shapes)
    joined = np.zeros((sum(batch for batch, _ in shapes), longest), np.bool_)
    row = 0
    for mask, (batch, length) in zip(masks, shapes, strict=True):
        joined[row : row + batch, longest - length :] = True if mask is None else mask
        row += batch
    return simplify(joined)
