"""The packings of integer digits, 0 to ``levels - 1``: at a fixed width, or in the entropy code of all tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from fedglm.inference.weights import fixed_width
from fedglm.inference.weights.codes import walk_changes, walk_nonzeros, walk_tree
from fedglm.inference.weights.fixed_width import Digits
from fedglm.inference.weights.rans import Coder

Shape = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class FixedPacking:
    """Digits at a fixed width, in bytes of their own.

    Attributes:
        takes: Whether it can write so many levels.
        fits: Whether it can write these digits.
        size: Number of bytes of so many digits of so many levels.
        pack: Packs digits of so many levels.
        unpack: Unpacks so many digits of so many levels; raises InferenceError.
    """

    takes: Callable[[int], bool]
    fits: Callable[[Digits], bool]
    size: Callable[[int, int], int]
    pack: Callable[[Digits, int], bytes]
    unpack: Callable[[bytes, int, int], Digits]


@dataclass(frozen=True, kw_only=True)
class CodedPacking:
    """Digits in the shared entropy code.

    Attributes:
        takes: Whether it can write so many levels.
        walk: Walks through the digits of a matrix: coder, digits or None, shape, levels, and the digits of an earlier
            release or None.
        needs_previous: Whether it needs those.
        leaves_signs: Whether of a ternary digit only that it is not zero is coded, as 2: its sign is a raw bit.
    """

    takes: Callable[[int], bool]
    walk: Callable[[Coder, Digits | None, Shape, int, Digits | None], Digits]
    needs_previous: bool = False
    leaves_signs: bool = False


Packing = FixedPacking | CodedPacking


def _takes_any(_levels: int) -> bool:
    return True


def _takes_ternary(levels: int) -> bool:
    return levels == 3


def _walk_tree(coder: Coder, digits: Digits | None, shape: Shape, levels: int, _previous: Digits | None) -> Digits:
    return walk_tree(coder, digits, shape, levels)


def _walk_columns(coder: Coder, digits: Digits | None, shape: Shape, _levels: int, _previous: Digits | None) -> Digits:
    nonzeros = walk_nonzeros(coder, None if digits is None else digits != 1, shape)
    return nonzeros.view(np.uint8) + np.uint8(1)


PACKINGS: Mapping[str, Packing] = MappingProxyType(
    {
        "bits": FixedPacking(
            takes=_takes_any,
            fits=lambda _: True,
            size=lambda count, levels: fixed_width.bits_size(count, (levels - 1).bit_length()),
            pack=lambda digits, levels: fixed_width.pack_bits(digits, (levels - 1).bit_length()),
            unpack=lambda blob, count, levels: fixed_width.unpack_bits(blob, count, (levels - 1).bit_length()),
        ),
        "trits": FixedPacking(
            takes=_takes_ternary,
            fits=lambda _: True,
            size=lambda count, _: fixed_width.trits_size(count),
            pack=lambda digits, _: fixed_width.pack_trits(digits),
            unpack=lambda blob, count, _: fixed_width.unpack_trits(blob, count),
        ),
        "sparse34": FixedPacking(
            takes=_takes_ternary,
            fits=fixed_width.is_sparse34,
            size=lambda count, _: fixed_width.sparse34_size(count),
            pack=lambda digits, _: fixed_width.pack_sparse34(digits),
            unpack=lambda blob, count, _: fixed_width.unpack_sparse34(blob, count),
        ),
        "tree": CodedPacking(takes=lambda levels: levels != 3, walk=_walk_tree),
        "columns": CodedPacking(takes=_takes_ternary, walk=_walk_columns, leaves_signs=True),
        "changes": CodedPacking(takes=_takes_any, walk=walk_changes, needs_previous=True),
    }
)
"""All packings by the name that the index has of them."""
