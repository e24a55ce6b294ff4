"""Quantization-aware training: which matrices are fake-quantized, what trains, and the codes that come out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch.nn.utils import parametrize

from fedglm.autoglm.errors import ModelError
from fedglm.autoglm.light.quantization.fake_quantization import FakeQuantized
from fedglm.autoglm.light.quantization.grids import Grid
from fedglm.autoglm.light.quantization.matrices import Matrix, list_matrices
from fedglm.autoglm.light.quantization.settings import QatSettings
from fedglm.inference.weights.quantized import QuantizedMatrix


@dataclass(frozen=True, eq=False)
class FakeQuantization:
    """The fake-quantized matrices of a model; made by `attach`."""

    matrices: Mapping[str, Matrix]
    quantizers: Mapping[str, FakeQuantized]

    def export(self) -> dict[str, QuantizedMatrix]:
        """Return the codes of every fake-quantized matrix by name; the model computes with exactly their values."""
        return {name: quantizer.export(self.matrices[name].weight) for name, quantizer in self.quantizers.items()}

    def code_bits(self) -> torch.Tensor:
        """Return the mean length of all codes under an entropy code, in bits a weight, a scalar with gradients."""
        lengths = [quantizer.code_length(self.matrices[name].weight) for name, quantizer in self.quantizers.items()]
        return torch.stack(lengths).sum() / sum(matrix.weight.numel() for matrix in self.matrices.values())

    def detach(self) -> None:
        """Take the parametrizations off; each weight keeps the values of its codes. What was frozen stays frozen."""
        for name, matrix in self.matrices.items():
            with torch.no_grad():
                values = self.quantizers[name](matrix.weight)
                for module in matrix.modules:
                    parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
                matrix.weight.copy_(values)


@dataclass(frozen=True, eq=False)
class EntropyPenalty:
    """Adds the codes' mean length under an entropy code to the loss; a hook of ``train_student``.

    Attributes:
        quantization: The fake-quantized matrices.
        rate: Nats of the loss for a bit a weight.
    """

    quantization: FakeQuantization
    rate: float

    def penalty(self, _student: nn.Module) -> torch.Tensor:
        """Return the term of the loss."""
        return self.rate * self.quantization.code_bits()

    def before_update(self, _student: nn.Module, _step: int) -> None:
        """Leave the gradients as they are."""

    def after_update(self, _student: nn.Module, _step: int) -> None:
        """Leave the weights as they are."""


def attach(model: nn.Module, grids: Mapping[str, Grid], settings: QatSettings) -> FakeQuantization:
    """Fake-quantize matrices of a model, in place, and freeze what the settings name.

    Args:
        model: Model in float32; whatever trains its parameters with ``requires_grad`` trains it quantized.
        grids: The grid that each matrix starts from, by name.
        settings: Scales, rate, and what is frozen.

    Raises:
        ModelError: A name is no matrix of the model, or a pattern matches none of its parameters.
    """
    matrices = list_matrices(model)
    if unknown := sorted(grids.keys() - matrices.keys()):
        raise ModelError(f"the model has no matrix {unknown[0]!r} to quantize; it has {', '.join(matrices)}")
    freeze(model, settings.frozen)
    chosen = {name: matrix for name, matrix in matrices.items() if name in grids}
    quantizers = {}
    for name, matrix in chosen.items():
        # A frozen matrix keeps its codes, so its scales do not move either.
        trains = matrix.weight.requires_grad
        quantizers[name] = FakeQuantized(
            matrix.weight,
            grids[name].scheme,
            grid=grids[name],
            scales=settings.scales if trains else "ema",
            decay=settings.decay if trains else 1.0,
        )
        for module in matrix.modules:
            parametrize.register_parametrization(module, "weight", quantizers[name])
    return FakeQuantization(chosen, quantizers)


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Switch ``requires_grad`` off for all parameters whose names match a pattern.

    Raises:
        ModelError: A pattern matches no parameter.
    """
    named = dict(model.named_parameters())
    for pattern in patterns:
        found = [name for name in named if fnmatchcase(name, pattern)]
        if not found:
            raise ModelError(f"no parameter is called {pattern!r}; they are called like {next(iter(named))}")
        for name in found:
            named[name].requires_grad_(False)
