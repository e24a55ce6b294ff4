"""The sum of clipped gradients of a step: each privacy unit's gradient is clipped to a norm as one vector.

Two implementations give the same sum. `GhostClipper` (`privacy/dp/ghost_clipping.py`) supports the layers of the GLM
family and needs one forward and one backward pass. `SampleClipper` (`privacy/dp/sample_clipping.py`) uses Opacus'
per-sample gradients, for any layer, and needs more time and memory. Both take one loss per record, never the mean of a
batch, by which one record's gradient would depend on the other records. Both compute norms and sums in float32 or
better, whatever the precision of the pass.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import nn

from fedglm.privacy.errors import PrivacyError


class Clipper(ABC):
    """Context manager in which backward passes add the units' clipped gradients to one sum.

        with clipper:
            clipper.begin()
            clipper.add(task.sequence_losses(model, batch), owners)   # once or more
            total = clipper.total

    The first dimension of every trainable layer's input must be the records. When the block is left, normally or by an
    error, the model is as before, except that gradients are None.

    Args:
        model: Model in training mode; its trainable parameters must be float32, and no layer may mix records.
        parameters: Trainable parameters, in the order of `total`.
        clipping_norm: Maximum L2 norm C of one unit's contribution.

    Attributes:
        total: Clipped sum since `begin`, (size,), float32.
        clipped: Number of contributing units whose norm was larger than C; private, it stays at the site.

    Raises:
        PrivacyError: The model cannot be trained privately; the message names the part that prevents it.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], clipping_norm: float) -> None:
        check_model(model, parameters)
        self._model = model
        self._parameters = list(parameters)
        self._clipping_norm = clipping_norm
        size = sum(parameter.numel() for parameter in parameters)
        self.total = torch.zeros(size, dtype=torch.float32, device=parameters[0].device)
        self._shares = list(torch.split(self.total, [parameter.numel() for parameter in parameters]))
        self.clipped = 0

    def begin(self) -> None:
        """Start a new sum at zero."""
        self.total.zero_()
        self.clipped = 0

    @abstractmethod
    def __enter__(self) -> Self:
        """Attach to the model."""

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Detach from the model."""

    def add(self, losses: torch.Tensor, owners: torch.Tensor) -> None:
        """Add the clipped gradients of the units of some records.

        A unit's gradient is the mean over its records in the call: with the sum, a unit with many records would reach
        the clipping norm sooner without benefit, and C would depend on the number of records.

        Args:
            losses: Loss of each record, (B,), with a graph that was built inside the block.
            owners: Unit of each record, (B,), int64: 0 to U - 1, each at least once, in ascending order. All records of
                a unit in this step must be in one call.

        Raises:
            PrivacyError: A parameter is used in a way that hides a record's contribution to its gradient.
        """
        if losses.shape != owners.shape or not len(owners):
            raise PrivacyError(f"{tuple(losses.shape)} losses do not match {tuple(owners.shape)} owners")
        steps = owners[1:] - owners[:-1]
        if int(owners[0]) or bool((steps < 0).any()) or bool((steps > 1).any()):
            raise PrivacyError("the owners of records must be 0, 1, 2, ... in rising order, none left out")
        if not losses.requires_grad:
            raise PrivacyError("the losses have no gradient")
        counts = torch.bincount(owners)
        with torch.autocast(self.total.device.type, enabled=False):  # norms of bfloat16 are off by 0.3 %
            self._add(losses, owners, counts, (1.0 / counts)[owners])
        if any(parameter.grad is not None for parameter in self._parameters):
            self.drop_gradients()
            raise PrivacyError("a gradient was computed for the batch as a whole; nothing of it may be used")

    @abstractmethod
    def _add(self, losses: torch.Tensor, owners: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor) -> None:
        """Run the backward pass from the losses, weighted by `weights`, (B,), float32, and add to `total`."""

    def drop_gradients(self) -> None:
        """Set the parameters' `.grad` to None."""
        for parameter in self._parameters:
            parameter.grad = None

    def _compute_factors(self, squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the clipping factors, (U,), float32, from squared norms, (U,), float64.

        A unit whose gradient, or the norm of it, has NaN or infinity contributes nothing.

        Returns:
            The factors, and which units contribute, (U,), bool.
        """
        norms = squares.clamp(min=0).sqrt()
        finite = torch.isfinite(norms)
        self.clipped += int((finite & (norms > self._clipping_norm)).sum())
        factors = torch.where(finite, self._clipping_norm / norms.clamp(min=self._clipping_norm), 0.0)
        return factors.to(torch.float32), finite

    def _add_clipped(
        self,
        index: int,
        gradients: torch.Tensor,
        factors: torch.Tensor,
        finite: torch.Tensor,
        *,
        transposed: bool = False,
    ) -> None:
        """Add the units' gradients of one parameter, each multiplied by its factor.

        Args:
            index: Index of the parameter.
            gradients: The gradients, (U, ...), float32; overwritten for units that do not contribute.
            factors: Clipping factors, (U,), float32.
            finite: Which units contribute, (U,), bool.
            transposed: Whether the gradients are of the transposed parameter.
        """
        if not bool(finite.all()):
            gradients[~finite] = 0.0  # a factor of zero does not undo NaN
        share, columns = self._shares[index], gradients.flatten(1).t()
        if transposed:
            transposed_sum = torch.mv(columns, factors).view(gradients.shape[1:])
            share.view(gradients.shape[2], gradients.shape[1]).add_(transposed_sum.t())
        else:
            share.addmv_(columns, factors)


def check_model(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a model that cannot be trained privately.

    Raises:
        PrivacyError: No parameter is trainable; a parameter is not float32 (its noise would be as coarse as its
            format); a trainable parameter is not in `parameters`; a layer mixes records; the model is in evaluation
            mode.
    """
    if not parameters:
        raise PrivacyError("no parameter of the model trains")
    known = {id(parameter) for parameter in parameters}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dtype != torch.float32:
            raise PrivacyError(f"{name} is {parameter.dtype}: parameters that train privately must be float32")
        if id(parameter) not in known:
            raise PrivacyError(f"{name} trains and is not among the parameters that are clipped")
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and (
            isinstance(module, nn.modules.batchnorm._BatchNorm) or module.track_running_stats
        ):
            raise PrivacyError(f"{name} is a {type(module).__name__}, which mixes records: use another norm")
    if not model.training:
        raise PrivacyError("the model is in evaluation mode")


def compute_squared_norms(gradients: torch.Tensor) -> torch.Tensor:
    """Compute the squared L2 norms, (U,), float64, of gradients, (U, ...), float32.

    It is done in two stages: a float32 norm over a whole matrix would lose digits that the bound on a contribution
    needs.
    """
    rows = gradients.flatten(2) if gradients.dim() > 2 else gradients[:, None]
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=2)
    return norms.double().square().sum(1)


def sum_by_unit(gradients: torch.Tensor, owners: torch.Tensor, units: int) -> torch.Tensor:
    """Sum the gradients of records, (B, ...), over each unit's records: (U, ...)."""
    if len(gradients) == units:
        return gradients
    return gradients.new_zeros(units, *gradients.shape[1:]).index_add_(0, owners, gradients)
