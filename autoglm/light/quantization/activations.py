"""Activations in INT8: the inputs of Linear layers rounded as an integer kernel rounds them, to check or to train.

Dynamic ranges are measured on each input, as the runtime's kernels do. Static ones are calibrated: a moving average of
each layer's range in training mode (Jacob et al., arXiv:1712.05877, section 3.1), fixed in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError, ModelError
from fedglm.autoglm.light.quantization.matrices import list_matrices
from fedglm.autoglm.tasks.task import Task

Ranges = Literal["dynamic", "static"]
_HIGH = 127


class ActivationQuantizer(nn.Module):
    """Rounds a tensor to INT8, symmetric, with straight-through gradients.

    Args:
        ranges: `dynamic`: the greatest magnitude of each block of the last dimension. `static`: one calibrated range.
        block: Columns of a dynamic block.
        decay: Decay of the moving average of a static range, a batch.
    """

    def __init__(self, ranges: Ranges = "dynamic", *, block: int = 32, decay: float = 0.9) -> None:
        super().__init__()
        self.ranges, self.block, self.decay = ranges, block, decay
        self.range: torch.Tensor
        self.register_buffer("range", torch.zeros(()))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values of the codes, of the same shape.

        Raises:
            ModelError: Ranges are static and nothing was calibrated.
        """
        known = values.detach()
        if self.ranges == "static":
            if self.training:
                seen = known.abs().amax()
                self.range.copy_(torch.lerp(seen, self.range, self.decay) if float(self.range) else seen)
            if not float(self.range):
                raise ModelError("a static range is not calibrated: run the model in training mode on examples first")
            steps = self.range / _HIGH
        else:
            width = values.shape[-1]
            padded = functional.pad(known, (0, -width % self.block))
            blocks = padded.view(*values.shape[:-1], -1, self.block)
            steps = (blocks.abs().amax(dim=-1) / _HIGH).repeat_interleave(self.block, dim=-1)[..., :width]
        safe = steps.clamp(min=torch.finfo(torch.float32).tiny)
        rounded = (known / safe).round().clamp(-_HIGH, _HIGH) * safe
        return values + (rounded - values).detach()


@contextmanager
def quantized_activations(model: nn.Module, ranges: Ranges = "dynamic") -> Iterator[dict[str, ActivationQuantizer]]:
    """Round the inputs of all Linear layers of a model within the block; yields the quantizers by their weights' names.

    A quantizer is in training mode only while `calibrate_ranges` runs, or when the caller switches it.
    """
    quantizers = {name: ActivationQuantizer(ranges).eval() for name in list_matrices(model)}

    def rounding(quantizer: ActivationQuantizer) -> Any:
        return lambda _module, inputs: (quantizer(inputs[0]), *inputs[1:])

    hooks = [
        linear.register_forward_pre_hook(rounding(quantizers[name]))
        for name, matrix in list_matrices(model).items()
        for linear in matrix.linears
    ]
    try:
        yield quantizers
    finally:
        for handle in hooks:
            handle.remove()


@torch.no_grad()
def calibrate_ranges(
    model: nn.Module, quantizers: dict[str, ActivationQuantizer], examples: Examples, *, batch_size: int = 16
) -> None:
    """Measure static ranges on examples, by a moving average over the batches.

    Raises:
        DataError: There are no examples.
    """
    if not len(examples):
        raise DataError("no examples to calibrate on: give at least one public text")
    training = model.training
    model.eval()
    for quantizer in quantizers.values():
        quantizer.train()
    try:
        for first in range(0, len(examples), batch_size):
            batch = examples.batch(range(first, min(first + batch_size, len(examples))))
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    finally:
        model.train(training)
        for quantizer in quantizers.values():
            quantizer.eval()


def measure_shift_curve(
    model: nn.Module,
    task: Task,
    calibration: Examples,
    held_out: Examples,
    *,
    shifts: Sequence[float],
) -> tuple[tuple[float, float], ...]:
    """Measure what static INT8 activations cost where all ranges are off by a factor.

    Args:
        model: Model.
        task: Its task.
        calibration: Examples that the ranges are measured on.
        held_out: Examples that the loss is measured on.
        shifts: Relative errors of all ranges; 0.1 makes them a tenth too large.

    Returns:
        (shift, rise of the loss in nats) for each shift, in order.

    Raises:
        DataError: There are no examples.
    """
    base = task.evaluate(model, held_out).loss
    curve = []
    with quantized_activations(model, "static") as quantizers:
        calibrate_ranges(model, quantizers, calibration)
        ranges = {name: quantizer.range.clone() for name, quantizer in quantizers.items()}
        for shift in shifts:
            for name, quantizer in quantizers.items():
                quantizer.range.copy_(ranges[name] * (1 + shift))
            curve.append((shift, task.evaluate(model, held_out).loss - base))
    return tuple(curve)
