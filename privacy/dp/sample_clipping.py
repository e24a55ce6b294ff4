"""Clipping by Opacus' per-sample gradients: any layer, at the price of a gradient in memory for each record."""

import warnings
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from opacus.grad_sample import GradSampleHooks  # type: ignore[import-untyped]
from torch import nn

from fedglm.privacy.dp.clipping import Clipper, squared_norms, unit_sums
from fedglm.privacy.errors import PrivacyError

_AGREEMENT = 2e-2
"""How far the records' gradients may sum to something else than autograd's for the batch: bfloat16 rounds to 2^-8."""


class SampleClipper(Clipper):
    """See `Clipper`. Layers that Opacus has no rule for go by way of `torch.func`.

    What autograd makes for the whole batch anyway serves as a check: a weight that is also used outside its layer, or a
    layer that sees records summed up, gives per-sample gradients with another sum.
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
        """Take the hooks off, and what they left on layers and parameters."""
        if self._hooks is not None:
            self._hooks.cleanup()
            self._hooks = None
        self._forget()

    def begin(self) -> None:
        """Start a new sum at zero; a pass that was never finished is forgotten."""
        super().begin()
        self._forget()

    def _add(self, losses: torch.Tensor, owners: torch.Tensor, counts: torch.Tensor, weights: torch.Tensor) -> None:
        with warnings.catch_warnings():
            # Opacus hooks the embedding too, whose input are whole numbers.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            torch.autograd.backward(losses, weights.to(losses.dtype))
        kept = {}
        squares = torch.zeros(len(counts), dtype=torch.float64, device=self.total.device)
        for place, parameter in enumerate(self._parameters):
            samples = getattr(parameter, "grad_sample", None)
            if samples is None:
                if parameter.grad is not None:
                    self._forget()
                    raise PrivacyError(f"parameter {place} has a gradient, and Opacus has none of each record")
                continue
            if not isinstance(samples, torch.Tensor) or len(samples) != len(owners):
                self._forget()
                raise PrivacyError(f"Opacus did not find one gradient for each record in parameter {place}")
            self._compare(place, samples, parameter.grad)
            kept[place] = gradients = unit_sums(samples.float(), owners, len(counts))
            squares += squared_norms(gradients)
            parameter.grad_sample = parameter.grad = None  # type: ignore[attr-defined]
        factors, finite = self._coefficients(squares)
        for place, gradients in kept.items():
            self._add_clipped(place, gradients, factors, finite)

    def _compare(self, place: int, samples: torch.Tensor, whole: torch.Tensor | None) -> None:
        total = samples.sum(0, dtype=torch.float32)
        difference = (total - whole).norm() if whole is not None else total.norm()
        if bool(difference > _AGREEMENT * samples.flatten(1).norm(dim=1).sum()):  # NaN compares as false
            self._forget()
            raise PrivacyError(
                f"the records' gradients of parameter {place} do not sum to the batch's: it is used outside its layer, "
                "or the layer mixes records"
            )

    def _forget(self) -> None:
        for module in self._model.modules():
            for left in ("activations", "max_batch_len"):
                if left in vars(module):
                    delattr(module, left)
        for parameter in self._parameters:
            if hasattr(parameter, "grad_sample"):
                parameter.grad_sample = None
                parameter._forward_counter = 0  # type: ignore[attr-defined]
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample
        self.drop_gradients()
