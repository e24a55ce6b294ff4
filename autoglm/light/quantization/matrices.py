"""The matrices of a model that can be quantized, under their names in the state dict."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True, eq=False, kw_only=True)
class Matrix:
    """The weight of a Linear or of an embedding, and the modules that share it.

    Attributes:
        name: Name in the state dict, such as ``model.layers.0.mlp.down_proj.weight``.
        weight: The parameter, (rows, columns), float32.
        modules: Modules whose ``weight`` it is: two where the output layer is tied to the embedding.
    """

    name: str
    weight: nn.Parameter
    modules: tuple[nn.Module, ...]

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """Those of the modules that multiply by it."""
        return tuple(module for module in self.modules if isinstance(module, nn.Linear))


def list_matrices(model: nn.Module) -> dict[str, Matrix]:
    """List the weights of all Linear and Embedding modules by name, in the module's order; a shared one once."""
    found: dict[int, tuple[str, nn.Parameter, list[nn.Module]]] = {}
    for name, module, weight in _weights(model):
        found.setdefault(id(weight), (name, weight, []))[2].append(module)
    return {name: Matrix(name=name, weight=weight, modules=tuple(modules)) for name, weight, modules in found.values()}


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and isinstance(module.weight, nn.Parameter):
            yield f"{name}.weight", module, module.weight
