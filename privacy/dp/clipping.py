"""What each privacy unit contributes to a step: its gradient, clipped to a norm as one vector, and summed.

Two ways give the same sum. `GhostClipper` (`privacy/dp/ghost_clipping.py`) knows the layers of the GLM family and
needs one forward and one backward pass. `SampleClipper` (`privacy/dp/sample_clipping.py`) is Opacus' per-sample
gradients, for any layer, slower and hungrier. Both take the losses of records one by one, never a batch's mean, which
would tie one record's gradient to its neighbours. Both compute norms and sums in float32 or better, whatever the pass
computed in.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from torch import nn

from fedglm.privacy.errors import PrivacyError


class Clipper(ABC):
    """Context manager in which backward passes add clipped gradients of units to one sum.

        with clipper:
            clipper.begin()
            clipper.add(task.sequence_losses(model, batch), owners)   # once or more
            total = clipper.total

    A batch's first dimension must count records, in every trainable layer. The model leaves the block as it entered it,
    whatever happens inside, but for gradients, which are None.

    Args:
        model: in training mode; its parameters that train must be float32, and no layer may mix records.
        parameters: what trains, in the order in which it lies in `total`.
        clipping_norm: C, the greatest L2 norm of one unit's contribution.

    Attributes:
        total: (size,) float32, the clipped sum since `begin`.
        clipped: how many of the contributing units had a greater norm; stays at the site.

    Raises:
        PrivacyError: the model cannot be trained privately; the message says which part of it.
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
        """Hook into the model."""

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the model as it was."""

    def add(self, losses: torch.Tensor, owners: torch.Tensor) -> None:
        """Add the clipped gradients of the units behind some records.

        A unit's gradient is the mean over its records here: the sum would let a unit with many records reach the
        clipping norm sooner and gain nothing, and C would have to follow the number of records.

        Args:
            losses: (B,) of each record, with a graph that was made inside the block.
            owners: (B,) int64, whose each record is: 0 to U - 1, each at least once, in rising order. All records that
                a unit has in this step must come in one call.

        Raises:
            PrivacyError: a parameter is used in a way that hides a record's part in its gradient.
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
        """Go backward from the losses, weighted by (B,) float32 `weights`, and add to `total`."""

    def drop_gradients(self) -> None:
        """Forget what autograd left in `.grad`."""
        for parameter in self._parameters:
            parameter.grad = None

    def _coefficients(self, squares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Factors that clip, (U,) float32, and which units count, (U,) bool, from squared norms, (U,) float64.

        A unit whose gradient holds NaN or infinity, or has a norm that does, contributes nothing.
        """
        norms = squares.clamp(min=0).sqrt()
        finite = torch.isfinite(norms)
        self.clipped += int((finite & (norms > self._clipping_norm)).sum())
        factors = torch.where(finite, self._clipping_norm / norms.clamp(min=self._clipping_norm), 0.0)
        return factors.to(torch.float32), finite

    def _add_clipped(
        self,
        place: int,
        gradients: torch.Tensor,
        factors: torch.Tensor,
        finite: torch.Tensor,
        *,
        transposed: bool = False,
    ) -> None:
        """Add (U, ...) float32 gradients of parameter number `place`, each times its factor.

        Args:
            place: which parameter.
            gradients: overwritten for units that do not count.
            factors: (U,) float32.
            finite: (U,) bool, which units count.
            transposed: the gradients are of the transposed parameter.
        """
        if not bool(finite.all()):
            gradients[~finite] = 0.0  # a factor of zero does not undo NaN
        share, columns = self._shares[place], gradients.flatten(1).t()
        if transposed:
            transposed_sum = torch.mv(columns, factors).view(gradients.shape[1:])
            share.view(gradients.shape[2], gradients.shape[1]).add_(transposed_sum.t())
        else:
            share.addmv_(columns, factors)


def check_model(model: nn.Module, parameters: Sequence[nn.Parameter]) -> None:
    """Refuse a model that cannot be trained privately.

    Raises:
        PrivacyError: nothing trains; a parameter is not float32 (its noise would be as coarse as its format); something
            trains that is not in `parameters`; a layer mixes records; the model is in evaluation mode.
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


def squared_norms(gradients: torch.Tensor) -> torch.Tensor:
    """Squared L2 norms, (U,) float64, of gradients (U, ...) float32.

    In two stages: a norm in float32 over a whole matrix would lose digits that the bound on a contribution needs.
    """
    rows = gradients.flatten(2) if gradients.dim() > 2 else gradients[:, None]
    norms: torch.Tensor = torch.linalg.vector_norm(rows, dim=2)
    return norms.double().square().sum(1)


def unit_sums(gradients: torch.Tensor, owners: torch.Tensor, units: int) -> torch.Tensor:
    """Sums over each unit's records, (U, ...), of records' gradients, (B, ...)."""
    if len(gradients) == units:
        return gradients
    return gradients.new_zeros(units, *gradients.shape[1:]).index_add_(0, owners, gradients)
