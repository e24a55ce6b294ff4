"""Norms and sums of units' weight gradients from what a layer saw and what came back to it.

A linear layer that maps N tokens of a unit by a weight (rows, columns) has the gradient G = L^T R, with L (N, rows)
what came back and R (N, columns) what went in. An embedding's is the same with L one-hot, and then R is what came back.
A weight that is used twice (a tied output layer) has the sum of both. Its squared norm is the sum over pairs of uses
and of tokens of <L_s, L_t> <R_s, R_t>: Goodfellow, arXiv:1510.01799; Li et al., arXiv:2110.05679, who call it ghost
clipping; Bu et al., arXiv:2205.10683, who choose for each layer between it and G itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedglm.privacy.dp.clipping import squared_norms

_GRAM_COST = 2.5
"""What a product of the Gram matrices costs against one of G's, measured: they are in float64."""
_NARROW = 16
"""Columns below which a product is better made transposed."""
_SCRATCH = 1 << 18
"""Numbers of gradients that are made at once only to take their norm: they stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a weight (rows, columns) by U units of N tokens each (0 where a unit has fewer).

    ``left`` is (U, N, rows) floats, or (U, N) int64 row numbers (one-hot); ``right`` is (U, N, columns). Floats are as
    the pass computed them, bfloat16 or float32.
    """

    left: torch.Tensor
    right: torch.Tensor

    @property
    def one_hot(self) -> bool:
        """Whether ``left`` holds row numbers."""
        return self.left.dim() == 2

    def transposed(self) -> "Use":
        """The use of the transposed weight that has the transposed G; there is none of a one-hot use."""
        return Use(self.right, self.left)

    def write_gradients(self, chosen: slice, into: torch.Tensor, *, add: bool) -> None:
        """Write G of some units into (u, rows, columns) float32, or add it to what is there."""
        left, right = self.left[chosen], self.right[chosen].float()
        if not self.one_hot:
            torch.baddbmm(into, left.float().transpose(1, 2), right, beta=int(add), out=into)
            return
        if not add:
            into.zero_()
        _, rows, columns = into.shape
        places = left + rows * torch.arange(len(right), device=left.device)[:, None]
        into.view(-1, columns).index_add_(0, places.flatten(), right.reshape(-1, columns))

    def add_clipped(self, share: torch.Tensor, factors: torch.Tensor, finite: torch.Tensor) -> None:
        """Add the sum over units of factor * G to ``share``, (rows, columns) float32."""
        left, right = self.left, self.right.float()
        if not self.one_hot:
            left = left.float()
        if not bool(finite.all()):
            right = torch.where(finite[:, None, None], right, 0.0)
            left = left if self.one_hot else torch.where(finite[:, None, None], left, 0.0)
        rows, columns = share.shape
        if self.one_hot:
            share.index_add_(0, left.flatten(), (right * factors[:, None, None]).view(-1, columns))
        elif rows < columns:
            share.addmm_((left * factors[:, None, None]).flatten(0, 1).t(), right.reshape(-1, columns))
        else:
            right = (right * factors[:, None, None]).view(-1, columns)
            if columns < _NARROW:
                share.add_((right.t() @ left.reshape(-1, rows)).t())
            else:
                share.addmm_(left.reshape(-1, rows).t(), right)


def transpose_is_cheaper(uses: Sequence[Use], rows: int, columns: int) -> bool:
    """Whether the transposed G is cheaper to make: products with few columns (LoRA) run at a quarter of the speed."""
    return rows > columns and not any(use.one_hot for use in uses)


def write_gradients(uses: Sequence[Use], into: torch.Tensor, chosen: slice = slice(None)) -> None:
    """Write G of some units over all uses of the weight into (u, rows, columns) float32."""
    for number, use in enumerate(sorted(uses, key=lambda use: use.one_hot)):
        use.write_gradients(chosen, into, add=number > 0)


def squared_norms_of(uses: Sequence[Use], rows: int, columns: int) -> torch.Tensor:
    """Squared norms of G, (U,) float64, without keeping G: by Gram matrices or by way of G, whichever is cheaper."""
    tokens = sum(use.right.shape[1] for use in uses)
    if _GRAM_COST * tokens * (rows + columns) < rows * columns:
        return gram_norms(uses)
    if transpose_is_cheaper(uses, rows, columns):
        uses, rows, columns = [use.transposed() for use in uses], columns, rows
    units = len(uses[0].right)
    step = min(units, max(1, _SCRATCH // (rows * columns)))
    scratch = torch.empty(step, rows, columns, device=uses[0].right.device)
    norms = []
    for first in range(0, units, step):
        some = scratch[: min(step, units - first)]
        write_gradients(uses, some, slice(first, first + len(some)))
        norms.append(squared_norms(some))
    return torch.cat(norms)


def gram_norms(uses: Sequence[Use]) -> torch.Tensor:
    """Squared norms of G by Gram matrices, (U,) float64.

    In float64: the terms may cancel to a small part of their sum, and an error of float32 in them would let a
    contribution exceed the clipping norm.
    """
    total = torch.zeros(len(uses[0].right), dtype=torch.float64, device=uses[0].right.device)
    for number, first in enumerate(uses):
        for second in uses[: number + 1]:
            right = torch.bmm(first.right.double(), second.right.double().transpose(1, 2))
            inner = (_left_products(first, second) * right).sum((1, 2))
            total += inner if first is second else 2 * inner
    return total


def _left_products(first: Use, second: Use) -> torch.Tensor:
    """<L_s, L_t> for all pairs of tokens, (U, N1, N2) float64 (or bool, of two one-hot)."""
    if first.one_hot and second.one_hot:
        return first.left[:, :, None] == second.left[:, None, :]
    if first.one_hot:
        return _left_products(second, first).transpose(1, 2)
    if second.one_hot:
        return first.left.gather(2, second.left[:, None, :].expand(-1, first.left.shape[1], -1)).double()
    return torch.bmm(first.left.double(), second.left.double().transpose(1, 2))
