"""Verification: how far each layer of a quantized model is from the reference, by cosine and squared error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.light.quantization.matrices import list_matrices
from fedglm.autoglm.tasks.task import Batch


class LayerDeviation(BaseModel):
    """How far the outputs of one matrix are from the reference's.

    Attributes:
        name: Name of the matrix.
        cosine: Cosine between its outputs and the reference's, both on the reference's inputs: its own error.
        error: Mean squared error of those outputs, relative to their mean square.
        model_cosine: The cosine where each model feeds itself: the error of all layers so far.
        model_error: The relative squared error, likewise.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    cosine: float
    error: float
    model_cosine: float
    model_error: float


@torch.no_grad()
def compare_layers(
    reference: torch.nn.Module, values: Mapping[str, torch.Tensor], quantized: torch.nn.Module, examples: Examples
) -> tuple[LayerDeviation, ...]:
    """Compare the outputs of all quantized matrices that a Linear multiplies by, the worst first.

    Args:
        reference: Model in float.
        values: Dequantized matrices by name, (rows, columns), float32.
        quantized: The same model with those values in place.
        examples: Examples for one forward pass of either model.

    Raises:
        DataError: There are no examples.
    """
    if not len(examples):
        raise DataError("no examples to compare layers on: give at least one public text")
    batch = examples.batch(range(len(examples)))
    inputs, outputs = _record(reference, batch)
    _, model_outputs = _record(quantized, batch)
    matrices = list_matrices(reference)
    deviations = []
    for name in outputs.keys() & values.keys():
        wanted = outputs[name]
        own = functional.linear(inputs[name], values[name], matrices[name].linears[0].bias)
        cosine, error = _compare(own, wanted)
        model_cosine, model_error = _compare(model_outputs[name], wanted)
        deviations.append(
            LayerDeviation(name=name, cosine=cosine, error=error, model_cosine=model_cosine, model_error=model_error)
        )
    return tuple(sorted(deviations, key=lambda one: (one.cosine, one.name)))


def _record(model: torch.nn.Module, batch: Batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Return inputs and outputs of all Linear layers at real tokens, (tokens, width), by the names of their weights."""
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    mask = batch["attention_mask"].bool()

    def record(name: str) -> Any:
        def hook(_module: torch.nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            inputs[name], outputs[name] = given[0][mask], output[mask]

        return hook

    hooks = [
        linear.register_forward_hook(record(name))
        for name, matrix in list_matrices(model).items()
        for linear in matrix.linears
    ]
    training = model.training
    model.eval()
    try:
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()
    return inputs, outputs


def _compare(values: torch.Tensor, wanted: torch.Tensor) -> tuple[float, float]:
    """Return the cosine of two tensors, and the squared error relative to the second's square; in float64."""
    one, other = values.double().flatten(), wanted.double().flatten()
    norm = float(other.norm())
    if not norm:
        return (1.0, 0.0) if not one.any() else (0.0, float("inf"))
    length = float(one.norm())
    cosine = float(one @ other) / (length * norm) if length else 0.0
    return cosine, float((one - other).norm()) ** 2 / norm**2
