"""Layers for ghost clipping: backward records the factors of a weight's gradient instead of computing it."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional


class UseRecorder(Protocol):
    """Records uses of parameters; see `GhostClipper`."""

    def expect_use(self, parameter: torch.Tensor) -> None:
        """Count a use of a parameter in a forward pass, which backward will record."""

    def record_use(self, parameter: torch.Tensor, left: torch.Tensor | None, right: torch.Tensor) -> None:
        """Record a use of a parameter that backward has reached."""


LayerFunction = Callable[[UseRecorder, Any, torch.Tensor], torch.Tensor]
"""Replacement of a layer's forward: takes a recorder, the layer and its input."""


def find_unsupported_layers(model: nn.Module) -> list[str]:
    """Find the trainable layers that ghost clipping does not support; return their names and types."""
    return [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if _find_trainable_parameters(module) and find_layer_function(module) is None
    ]


def _find_trainable_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    own = module.named_parameters(recurse=False)
    return {name: parameter for name, parameter in own if parameter.requires_grad}


def find_layer_function(module: nn.Module) -> LayerFunction | None:
    """Find the recording forward of a layer; None where it has no trainable parameters, or is not supported."""
    own = _find_trainable_parameters(module)
    if not own or "forward" in vars(module):
        return None  # a replaced forward may compute anything
    if type(module) is nn.Linear:
        return _run_linear
    if type(module) is nn.Embedding:
        # Rows would be scaled by their frequency in the batch, or changed in the forward pass; or gradients are sparse.
        unsupported = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        return None if unsupported else _run_embedding
    # RMS norms of transformers multiply by a weight of any shape; torch's own requires a vector.
    scales = type(module).__name__.endswith("RMSNorm") and type(module) is not nn.RMSNorm
    return _run_rms_norm if scales and set(own) == {"weight"} and own["weight"].dim() == 1 else None


class RecordedForward:
    """A layer's forward while its uses are recorded: the recording one when there will be a backward pass."""

    def __init__(
        self, recorder: UseRecorder, module: nn.Module, function: LayerFunction, forward: Callable[..., torch.Tensor]
    ) -> None:
        self._recorder, self._module, self._function, self._forward = recorder, module, function, forward

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """Compute the layer's output."""
        if torch.is_grad_enabled():
            return self._function(self._recorder, self._module, values)
        return self._forward(values)


def _run_linear(recorder: UseRecorder, module: nn.Linear, values: torch.Tensor) -> torch.Tensor:
    weight, bias = module.weight, module.bias
    used_weight, used_bias = weight.detach(), None if bias is None else bias.detach()
    device = values.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        values, used_weight = values.to(dtype), used_weight.to(dtype)
        used_bias = None if used_bias is None else used_bias.to(dtype)
    for parameter in (weight, bias):
        if parameter is not None and parameter.requires_grad:
            recorder.expect_use(parameter)
    return _apply(_Linear, recorder, weight, bias, values, used_weight, used_bias)


def _run_embedding(recorder: UseRecorder, module: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    recorder.expect_use(module.weight)
    return _apply(_Embedding, recorder, module.weight, ids, module.padding_idx)


def _run_rms_norm(recorder: UseRecorder, module: Any, values: torch.Tensor) -> torch.Tensor:
    """Run the module's own code with one copy of the weight per record: autograd then separates their gradients."""
    weight = module.weight
    recorder.expect_use(weight)
    module._parameters["weight"] = _apply(_ExpandedWeight, recorder, weight, len(values), values.dim())
    try:
        result: torch.Tensor = type(module).forward(module, values)
        return result
    finally:
        module._parameters["weight"] = weight


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> torch.Tensor:
    result: torch.Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    """x W^T + b, whose backward records uses of W and b instead of computing their gradients."""

    @staticmethod
    def forward(ctx: Any, recorder: Any, weight: Any, bias: Any, values: Any, used_weight: Any, used_bias: Any) -> Any:
        ctx.save_for_backward(values, used_weight)
        ctx.recorder, ctx.weight, ctx.bias = recorder, weight, bias
        return functional.linear(values, used_weight, used_bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (grad,) = outputs
        values, used_weight = ctx.saved_tensors
        if ctx.weight.requires_grad:
            ctx.recorder.record_use(ctx.weight, grad, values.detach())
        if ctx.bias is not None and ctx.bias.requires_grad:
            ctx.recorder.record_use(ctx.bias, None, grad.float().reshape(len(grad), -1, grad.shape[-1]).sum(1))
        return None, None, None, grad @ used_weight if ctx.needs_input_grad[3] else None, None, None


class _Embedding(torch.autograd.Function):
    """Rows of a weight, whose backward records a use instead of computing its gradient."""

    @staticmethod
    def forward(ctx: Any, recorder: Any, weight: Any, ids: Any, padding: Any) -> Any:
        ctx.recorder, ctx.weight, ctx.ids, ctx.padding = recorder, weight, ids, padding
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (grad,) = outputs
        if ctx.padding is not None:
            grad = grad.masked_fill((ctx.ids == ctx.padding)[..., None], 0.0)
        ctx.recorder.record_use(ctx.weight, ctx.ids, grad)
        return None, None, None, None


class _ExpandedWeight(torch.autograd.Function):
    """A vector, (n,), expanded to (B, 1, ..., n), whose backward records the gradient of each record."""

    @staticmethod
    def forward(ctx: Any, recorder: Any, weight: Any, records: Any, dimensions: Any) -> Any:
        ctx.recorder, ctx.weight = recorder, weight
        return weight.view(*[1] * (dimensions - 1), -1).expand(records, *[-1] * (dimensions - 1))

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (grad,) = outputs
        ctx.recorder.record_use(ctx.weight, None, grad)
        return None, None, None, None
