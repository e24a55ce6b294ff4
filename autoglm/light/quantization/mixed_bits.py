"""Mixed bits: a scheme for each matrix, by what it does to the loss, under a budget of bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.quantization.matrices import Matrix
from fedglm.autoglm.light.quantization.post_training import choose_codes
from fedglm.autoglm.light.quantization.scheme import Scheme
from fedglm.autoglm.light.quantization.settings import Method


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A scheme that a matrix may take.

    Attributes:
        scheme: The scheme.
        bits: Bits of the packed matrix.
        loss_rise: Rise of the loss, in nats, where this matrix alone is quantized so.
    """

    scheme: Scheme
    bits: float
    loss_rise: float


@torch.no_grad()
def measure_choices(
    matrices: Mapping[str, Matrix],
    candidates: Sequence[Scheme],
    measure_loss: Callable[[], float],
    *,
    method: Method = "mse",
    moments: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, tuple[Choice, ...]]:
    """Measure what each candidate does to the loss where one matrix alone is quantized; weights are restored.

    Args:
        matrices: Matrices by name.
        candidates: Schemes to try.
        measure_loss: Evaluates the model as it stands, in nats; the same examples each time.
        method: How codes are chosen.
        moments: Second moments of the inputs by name, where the method needs them.

    Raises:
        ModelError: A matrix does not suit a scheme.
    """
    base = measure_loss()
    choices = {}
    for name, matrix in matrices.items():
        original = matrix.weight.detach().clone()
        options = []
        try:
            for scheme in candidates:
                grid, codes = choose_codes(original, scheme, method=method, moments=(moments or {}).get(name))
                matrix.weight.copy_(grid.decode(codes))
                bits = scheme.bits_per_weight(*original.shape) * original.numel()
                options.append(Choice(scheme=scheme, bits=bits, loss_rise=measure_loss() - base))
        finally:
            matrix.weight.copy_(original)
        choices[name] = tuple(options)
    return choices


def allocate_bits(choices: Mapping[str, tuple[Choice, ...]], *, budget: float) -> dict[str, Scheme]:
    """Choose a scheme for each matrix, so that the sum of the loss rises is small within a budget.

    Each matrix starts with the fewest bits; then, time and again, the step that saves the most loss for a bit is taken,
    along each matrix' lower convex hull (Shoham and Gersho, IEEE Trans. ASSP 36(9), 1988: optimal at the budgets where
    a step ends, for rises that add up).

    Args:
        choices: Schemes of each matrix, by name.
        budget: Bits of all matrices together.

    Raises:
        ModelError: The matrices do not fit in the budget with the fewest bits.
    """
    hulls = {name: _convex_hull(options) for name, options in choices.items()}
    place = dict.fromkeys(hulls, 0)
    spent = sum(hull[0].bits for hull in hulls.values())
    if spent > budget:
        raise ModelError(f"the budget of {budget:.0f} bits is too small: the least schemes take {spent:.0f}")
    steps = sorted(
        (
            (-(before.loss_rise - after.loss_rise) / (after.bits - before.bits), name, number, after.bits - before.bits)
            for name, hull in hulls.items()
            for number, (before, after) in enumerate(pairwise(hull))
        ),
    )
    for _, name, number, bits in steps:  # of one matrix they come in order, for its hull is convex
        if place[name] == number and spent + bits <= budget:
            place[name], spent = number + 1, spent + bits
    return {name: hull[place[name]].scheme for name, hull in hulls.items()}


def _convex_hull(options: tuple[Choice, ...]) -> list[Choice]:
    """Return the options from the fewest bits on, each saving less loss a bit than the one before."""
    hull: list[Choice] = []
    for one in sorted(options, key=lambda choice: (choice.bits, choice.loss_rise)):
        if hull and one.loss_rise >= hull[-1].loss_rise:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], one):
            hull.pop()
        hull.append(one)
    return hull


def _slope(before: Choice, after: Choice) -> float:
    return (before.loss_rise - after.loss_rise) / (after.bits - before.bits)
