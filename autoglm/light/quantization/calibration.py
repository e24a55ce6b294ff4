"""Calibration: what the inputs of a model's Linear layers are like, measured on public or model-made examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.light.quantization.matrices import list_matrices

Moments = Mapping[str, torch.Tensor]
"""Second moments of the inputs of each matrix, E[x x^T], (columns, columns), float64; by the matrix's name."""


@torch.no_grad()
def measure_moments(model: torch.nn.Module, examples: Examples, *, batch_size: int = 32) -> dict[str, torch.Tensor]:
    """Measure the second moments of the inputs that each Linear's weight meets, over all real tokens.

    Tensors that no Linear multiplies by, such as an untied embedding, are left out.

    Args:
        model: Model in evaluation or training mode; it is run in evaluation mode and left as it was.
        examples: Calibration data.
        batch_size: Sequences a forward pass.

    Raises:
        DataError: There are no examples.
    """
    if not len(examples):
        raise DataError("no examples to calibrate on: give at least one public text")
    sums: dict[str, torch.Tensor] = {}
    mask = torch.empty(0, dtype=torch.bool)

    def record(name: str) -> Any:
        def hook(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            rows = inputs[0][mask].double()
            sums[name] = sums.get(name, 0) + rows.T @ rows

        return hook

    hooks = [
        linear.register_forward_pre_hook(record(name))
        for name, matrix in list_matrices(model).items()
        for linear in matrix.linears
    ]
    training, count = model.training, 0
    model.eval()
    try:
        for first in range(0, len(examples), batch_size):
            batch = examples.batch(range(first, min(first + batch_size, len(examples))))
            mask = batch["attention_mask"].bool()
            count += int(mask.sum())
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        model.train(training)
        for handle in hooks:
            handle.remove()
    return {name: total / count for name, total in sums.items()}


def shift_tokens(examples: Examples, share: float, *, vocab_size: int, seed: int) -> Examples:
    """Replace a share of all tokens by uniformly random ones: calibration data that are less and less like the text.

    Args:
        examples: Calibration data.
        share: Share of the tokens, 0 to 1.
        vocab_size: Exclusive upper bound of the token ids.
        seed: Seed of places and tokens.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = examples.input_ids.shape
    at = torch.rand(shape, generator=generator) < share
    tokens = torch.randint(vocab_size, shape, generator=generator).to(examples.input_ids.dtype)
    return replace(examples, input_ids=torch.where(at, tokens, examples.input_ids))
