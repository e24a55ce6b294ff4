"""Norms and sums of units' weight gradients, from a layer's input and the gradient of its output.

A linear layer that maps N tokens of a unit by a weight (rows, columns) has the gradient G = L^T R, with L, (N, rows),
the gradient of its output and R, (N, columns), its input. An embedding's gradient has the same form, with L the one-hot
ids and R the gradient of its output. A weight that is used twice (a tied output layer) has the sum of both. The squared
norm of G is the sum over pairs of uses and of tokens of <L_s, L_t> <R_s, R_t>: Goodfellow, arXiv:1510.01799; Li et al.,
arXiv:2110.05679, who call it ghost clipping; Bu et al., arXiv:2205.10683, who choose for each layer between it and G
itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedglm.privacy.dp.clipping import compute_squared_norms

_GRAM_COST = 2.5
"""Cost of a product for Gram matrices, in float64, relative to one for G; measured."""
_NARROW = 16
"""Number of columns below which the transposed product is faster."""
_SCRATCH = 1 << 18
"""Number of gradient values that are computed at once only for their norm: they fit into the processor's cache."""


@dataclass(frozen=True, eq=False)
class Use:
    """One use of a weight, (rows, columns), by U units of N tokens each, padded with zeros.

    Attributes:
        left: L, (U, N, rows), or row indices for one-hot rows, (U, N), int64.
        right: R, (U, N, columns). Floats have the dtype of the pass, bfloat16 or float32.
    """

    left: torch.Tensor
    right: torch.Tensor

    @property
    def one_hot(self) -> bool:
        """Whether ``left`` has row indices."""
        return self.left.dim() == 2

    def transpose(self) -> "Use":
        """Return the use of the transposed weight, whose gradient is the transposed G; not for a one-hot use."""
        return Use(self.right, self.left)

    def write_gradients(self, chosen: slice, into: torch.Tensor, *, add: bool) -> None:
        """Write G of some units into `into`, (u, rows, columns), float32, or add it to the values there."""
        left, right = self.left[chosen], self.right[chosen].float()
        if not self.one_hot:
            torch.baddbmm(into, left.float().transpose(1, 2), right, beta=int(add), out=into)
            return
        if not add:
            into.zero_()
        _, rows, columns = into.shape
        indices = left + rows * torch.arange(len(right), device=left.device)[:, None]
        into.view(-1, columns).index_add_(0, indices.flatten(), right.reshape(-1, columns))

    def add_clipped(self, share: torch.Tensor, factors: torch.Tensor, finite: torch.Tensor) -> None:
        """Add the sum over units of factor * G to ``share``, (rows, columns), float32.

        Args:
            share: The parameter's part of the total.
            factors: Clipping factors, (U,), float32.
            finite: Which units contribute, (U,), bool.
        """
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


def is_transpose_cheaper(uses: Sequence[Use], rows: int, columns: int) -> bool:
    """Return whether the transposed G is faster: products with few columns (LoRA) run at a quarter of the speed."""
    return rows > columns and not any(use.one_hot for use in uses)


def write_gradients(uses: Sequence[Use], into: torch.Tensor, chosen: slice = slice(None)) -> None:
    """Write G of some units, summed over all uses of the weight, into `into`, (u, rows, columns), float32."""
    for number, use in enumerate(sorted(uses, key=lambda use: use.one_hot)):
        use.write_gradients(chosen, into, add=number > 0)


def compute_weight_norms(uses: Sequence[Use], rows: int, columns: int) -> torch.Tensor:
    """Compute the squared norms of G, (U,), float64, by Gram matrices or in chunks of G, whichever is faster."""
    tokens = sum(use.right.shape[1] for use in uses)
    if _GRAM_COST * tokens * (rows + columns) < rows * columns:
        return compute_gram_norms(uses)
    if is_transpose_cheaper(uses, rows, columns):
        uses, rows, columns = [use.transpose() for use in uses], columns, rows
    units = len(uses[0].right)
    step = min(units, max(1, _SCRATCH // (rows * columns)))
    scratch = torch.empty(step, rows, columns, device=uses[0].right.device)
    norms = []
    for first in range(0, units, step):
        chunk = scratch[: min(step, units - first)]
        write_gradients(uses, chunk, slice(first, first + len(chunk)))
        norms.append(compute_squared_norms(chunk))
    return torch.cat(norms)


def compute_gram_norms(uses: Sequence[Use]) -> torch.Tensor:
    """Compute the squared norms of G by Gram matrices, (U,), float64.

    They are float64: the terms may cancel to a small part of their sum, and a float32 error in them would let a
    contribution exceed the clipping norm.
    """
    total = torch.zeros(len(uses[0].right), dtype=torch.float64, device=uses[0].right.device)
    for number, first in enumerate(uses):
        for second in uses[: number + 1]:
            right = torch.bmm(first.right.double(), second.right.double().transpose(1, 2))
            inner = (_multiply_left(first, second) * right).sum((1, 2))
            total += inner if first is second else 2 * inner
    return total


def _multiply_left(first: Use, second: Use) -> torch.Tensor:
    """Compute <L_s, L_t> for all pairs of tokens, (U, N1, N2), float64 (bool for two one-hot uses)."""
    if first.one_hot and second.one_hot:
        return first.left[:, :, None] == second.left[:, None, :]
    if first.one_hot:
        return _multiply_left(second, first).transpose(1, 2)
    if second.one_hot:
        return first.left.gather(2, second.left[:, None, :].expand(-1, first.left.shape[1], -1)).double()
    return torch.bmm(first.left.double(), second.left.double().transpose(1, 2))
