"""Layers that run by way of the books: backward writes down a layer's part instead of making its weight's gradient."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional


class Books(Protocol):
    """Where uses of parameters are written down; see `GhostClipper`."""

    def await_use(self, parameter: torch.Tensor) -> None:
        """A forward pass used a parameter: backward will book it."""

    def book(self, parameter: torch.Tensor, left: torch.Tensor | None, right: torch.Tensor) -> None:
        """Backward reached a use of a parameter."""


Runner = Callable[[Books, Any, torch.Tensor], torch.Tensor]


def unknown_layers(model: nn.Module) -> list[str]:
    """Names and types of layers that train and that ghost clipping does not know."""
    return [
        f"{name or 'the model'} ({type(module).__name__})"
        for name, module in model.named_modules()
        if _own_parameters(module) and runner_of(module) is None
    ]


def _own_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    own = module.named_parameters(recurse=False)
    return {name: parameter for name, parameter in own if parameter.requires_grad}


def runner_of(module: nn.Module) -> Runner | None:
    """How a layer that trains runs by way of the books; None where nothing of its own trains, or nobody knows."""
    own = _own_parameters(module)
    if not own or "forward" in vars(module):
        return None  # a forward that somebody replaced computes nobody knows what
    if type(module) is nn.Linear:
        return _run_linear
    if type(module) is nn.Embedding:
        # A row is scaled by how often the whole batch holds it, or changed in the forward pass; sparse is not dense.
        mixes = module.max_norm is not None or module.scale_grad_by_freq or module.sparse
        return None if mixes else _run_embedding
    # The norms of transformers multiply by their weight, as it comes; torch's own wants a vector.
    scales = type(module).__name__.endswith("RMSNorm") and type(module) is not nn.RMSNorm
    return _run_scale if scales and set(own) == {"weight"} and own["weight"].dim() == 1 else None


class Booked:
    """A layer's forward while its uses are booked: by way of the books when there will be a backward pass."""

    def __init__(self, books: Books, module: nn.Module, runner: Runner, forward: Callable[..., torch.Tensor]) -> None:
        self._books, self._module, self._runner, self._forward = books, module, runner, forward

    def __call__(self, values: torch.Tensor) -> torch.Tensor:
        """What the layer makes of its input."""
        if torch.is_grad_enabled():
            return self._runner(self._books, self._module, values)
        return self._forward(values)


def _run_linear(books: Books, module: nn.Linear, values: torch.Tensor) -> torch.Tensor:
    weight, bias = module.weight, module.bias
    used_weight, used_bias = weight.detach(), None if bias is None else bias.detach()
    device = values.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        values, used_weight = values.to(dtype), used_weight.to(dtype)
        used_bias = None if used_bias is None else used_bias.to(dtype)
    for parameter in (weight, bias):
        if parameter is not None and parameter.requires_grad:
            books.await_use(parameter)
    return _apply(_Linear, books, weight, bias, values, used_weight, used_bias)


def _run_embedding(books: Books, module: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
    books.await_use(module.weight)
    return _apply(_Embedding, books, module.weight, ids, module.padding_idx)


def _run_scale(books: Books, module: Any, values: torch.Tensor) -> torch.Tensor:
    """The module's own code, with a weight for each record: autograd then keeps the records' gradients apart."""
    weight = module.weight
    books.await_use(weight)
    module._parameters["weight"] = _apply(_Spread, books, weight, len(values), values.dim())
    try:
        result: torch.Tensor = type(module).forward(module, values)
        return result
    finally:
        module._parameters["weight"] = weight


def _apply(function: type[torch.autograd.Function], *arguments: Any) -> torch.Tensor:
    result: torch.Tensor = function.apply(*arguments)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    """x W^T + b, whose backward books instead of making gradients of W and b."""

    @staticmethod
    def forward(ctx: Any, books: Any, weight: Any, bias: Any, values: Any, used_weight: Any, used_bias: Any) -> Any:
        ctx.save_for_backward(values, used_weight)
        ctx.books, ctx.weight, ctx.bias = books, weight, bias
        return functional.linear(values, used_weight, used_bias)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (back,) = outputs
        values, used_weight = ctx.saved_tensors
        if ctx.weight.requires_grad:
            ctx.books.book(ctx.weight, back, values.detach())
        if ctx.bias is not None and ctx.bias.requires_grad:
            ctx.books.book(ctx.bias, None, back.float().reshape(len(back), -1, back.shape[-1]).sum(1))
        return None, None, None, back @ used_weight if ctx.needs_input_grad[3] else None, None, None


class _Embedding(torch.autograd.Function):
    """Rows of a weight, whose backward books instead of making its gradient."""

    @staticmethod
    def forward(ctx: Any, books: Any, weight: Any, ids: Any, padding: Any) -> Any:
        ctx.books, ctx.weight, ctx.ids, ctx.padding = books, weight, ids, padding
        return functional.embedding(ids, weight)

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (back,) = outputs
        if ctx.padding is not None:
            back = back.masked_fill((ctx.ids == ctx.padding)[..., None], 0.0)
        ctx.books.book(ctx.weight, ctx.ids, back)
        return None, None, None, None


class _Spread(torch.autograd.Function):
    """A vector (n,) as (B, 1, ..., n), whose backward books the records' gradients apart."""

    @staticmethod
    def forward(ctx: Any, books: Any, weight: Any, records: Any, dimensions: Any) -> Any:
        ctx.books, ctx.weight = books, weight
        return weight.view(*[1] * (dimensions - 1), -1).expand(records, *[-1] * (dimensions - 1))

    @staticmethod
    def backward(ctx: Any, *outputs: Any) -> Any:
        (back,) = outputs
        ctx.books.book(ctx.weight, None, back)
        return None, None, None, None
