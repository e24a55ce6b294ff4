"""Clipping by Opacus' per-sample gradients: for any layer, with one gradient per record in memory."""

import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from opacus.grad_sample import GradSampleHooks  # type: ignore[import-untyped]
from torch import nn

from fedglm.privacy.dp.clipping import Clipper, compute_squared_norms, sum_by_unit
from fedglm.privacy.errors import PrivacyError

_SUM_TOLERANCE = 2e-2
"""Relative tolerance between the sum of the records' gradients and autograd's of the batch: bfloat16 rounds to 2^-8."""


class SampleClipper(Clipper):
    """A `Clipper` with Opacus' hooks; layers without a rule of Opacus use `torch.func`.

    Autograd's gradient of the batch, which is computed anyway, serves as a check: a weight that is also used outside
    its layer, or a layer whose input sums over records, gives per-sample gradients with another sum.
    """

    def __init__(self, model: nn.Module, parameters: Sequence[nn.Parameter], clipping_norm: float) -> None:
        super().__init__(model, parameters, clipping_norm)
        self._hooks: GradSampleHooks | None = None

    def __enter__(self) -> Self:
        """Attach Opacus' hooks; the model is not wrapped, and its parameters keep their names."""
        # Not strict: the strict check refuses every buffer, and GLM's rotary frequencies are one.
        self._hooks = GradSampleHooks(self._model, batch_first=True, loss_reduction="sum", strict=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the hooks, and the attributes that they set on layers and parameters."""
        if self._hooks is not None:
            self._hooks.cleanup()
            self._hooks = None
        self._clear()

    def begin(self) -> None:
        """Start a new sum at zero; discard an unfinished pass."""
        super().begin()
        self._clear()

    def _add(self, losses: torch.Tensor, owners: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor) -> None:
        with warnings.catch_warnings():
            # Opacus also hooks the embedding, whose input are integers.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            torch.autograd.backward(losses, weights.to(losses.dtype))
        kept = {}
        squares = torch.zeros(len(counts), dtype=torch.float64, device=self.total.device)
        for index, parameter in enumerate(self._parameters):
            samples = getattr(parameter, "grad_sample", None)
            if samples is None:
                if parameter.grad is not None:
                    self._clear()
                    raise PrivacyError(f"parameter {index} has a gradient, and Opacus has none of each record")
                continue
            if not isinstance(samples, torch.Tensor) or len(samples) != len(owners):
                self._clear()
                raise PrivacyError(f"Opacus did not find one gradient for each record in parameter {index}")
            self._check_sum(index, samples, parameter.grad)
            kept[index] = gradients = sum_by_unit(samples.float(), owners, len(counts))
            squares += compute_squared_norms(gradients)
            parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]
        factors, finite = self._compute_factors(squares)
        for index, gradients in kept.items():
            self._add_clipped(index, gradients, factors, finite)

    def _check_sum(self, index: int, samples: torch.Tensor, batch_gradient: torch.Tensor | None) -> None:
        total = samples.sum(0, dtype=torch.float32)
        difference = (total - batch_gradient).norm() if batch_gradient is not None else total.norm()
        if bool(difference > _SUM_TOLERANCE * samples.flatten(1).norm(dim=1).sum()):  # NaN compares as false
            self._clear()
            raise PrivacyError(
                f"the records' gradients of parameter {index} do not sum to the batch's: it is used outside its layer, "
                "or the layer mixes records"
            )

    def _clear(self) -> None:
        for module in self._model.modules():
            for name in ("activations", "max_batch_len"):
                if name in vars(module):
                    delattr(module, name)
        for parameter in self._parameters:
            if hasattr(parameter, "grad_sample"):
                parameter.grad_sample = None
                parameter._forward_counter = 0  # type: ignore[attr-defined]
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample
        self.drop_gradients()
