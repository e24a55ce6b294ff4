"""What a model does with calibration text: energies, correlations and derivatives of its prunable units.

One forward pass, and one backward pass where derivatives are wanted. Only means leave this file, no activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.light.pruning.surgery import read_shape
from fedglm.autoglm.tasks.task import Batch, Task


@dataclass(frozen=True, eq=False, kw_only=True)
class GateDerivatives:
    """Derivatives of a sequence's loss by factors of 1 on the outputs of units, over N sequences.

    Attributes:
        absolute: Mean of the derivative's magnitude, (units,), float64, nats.
        squared: Mean of its square, (units,), float64, nats squared.
    """

    absolute: torch.Tensor
    squared: torch.Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerStatistics:
    """Means over the real tokens of the calibration text.

    Attributes:
        channel_gram: Mean outer product of the inputs of the down projection, (I, I), float64.
        head_gram: Mean outer product of the inputs of the attention's output projection, (heads * D, heads * D).
        stream_energy: Mean squared norm of the residual stream behind the layer.
        update_energy: Mean squared norm of what the layer adds to the stream.
        channels: Derivatives by channel, None where no derivatives were asked for.
        groups: Derivatives by KV group, likewise.
        layer: Derivatives by what the layer adds to the stream, of one unit, likewise.
    """

    channel_gram: torch.Tensor
    head_gram: torch.Tensor
    stream_energy: float
    update_energy: float
    channels: GateDerivatives | None = None
    groups: GateDerivatives | None = None
    layer: GateDerivatives | None = None


def collect_statistics(
    model: PreTrainedModel, task: Task, examples: Examples, *, derivatives: bool, batch_size: int = 32
) -> tuple[LayerStatistics, ...]:
    """Run a model on calibration examples and return the statistics of each layer; the model is unchanged.

    Args:
        model: GLM; it is run in evaluation mode.
        task: Its task, whose loss is differentiated.
        examples: Public or model-made sequences.
        derivatives: Whether to differentiate the loss, which costs a backward pass.
        batch_size: Number of sequences at a time; it changes no result but by rounding.

    Raises:
        DataError: There are no examples.
        PruningError: The model is no GLM.
    """
    if not len(examples):
        raise DataError("no examples to calibrate on")
    groups = [layer.num_key_value_heads for layer in read_shape(model).layers]
    sums = [_Sums(count) for count in groups]
    training = model.training
    model.eval()
    try:
        for first in range(0, len(examples), batch_size):
            batch = examples.batch(range(first, min(first + batch_size, len(examples))))
            _add_batch(model, task, batch, sums, derivatives=derivatives)
    finally:
        model.train(training)
    return tuple(each.means() for each in sums)


def _add_batch(model: PreTrainedModel, task: Task, batch: Batch, sums: list[_Sums], *, derivatives: bool) -> None:
    with _record_layers(model, watch_gradients=derivatives) as records, torch.set_grad_enabled(derivatives):
        losses = task.sequence_losses(model, batch)
    real = batch["attention_mask"].bool()
    slopes: list[tuple[torch.Tensor, ...] | None] = [None] * len(records)  # sums are made on the CPU, in float64
    if derivatives:
        watched = [tensor for record in records for tensor in (record["down"], record["output"], record["after"])]
        flat = tuple(slope.cpu() for slope in torch.autograd.grad(losses.sum(), watched))
        slopes = [flat[3 * number : 3 * number + 3] for number in range(len(records))]
    for each, record, slope in zip(sums, records, slopes, strict=True):
        each.add({name: tensor.detach().cpu() for name, tensor in record.items()}, slope, real)


class _Sums:
    """Running sums of a layer."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._tokens = self._sequences = 0
        self._grams: dict[str, torch.Tensor] = {}
        self._energies = {"after": 0.0, "update": 0.0}
        self._slopes: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def add(self, record: dict[str, torch.Tensor], slopes: tuple[torch.Tensor, ...] | None, real: torch.Tensor) -> None:
        update = record["after"] - record["before"]
        self._tokens += int(real.sum())
        self._sequences += len(real)
        for name in ("down", "output"):
            rows = record[name][real].double()
            self._grams[name] = self._grams.get(name, torch.zeros(())) + rows.T @ rows
        for name, tensor in (("after", record["after"]), ("update", update)):
            self._energies[name] += float(tensor[real].double().square().sum())
        if slopes is None:
            return
        # d loss / d gate = the sum of activation x gradient over the tokens that the gate would scale.
        by_channel = (record["down"] * slopes[0]).sum(1)
        by_group = (record["output"] * slopes[1]).sum(1).view(len(real), self._groups, -1).sum(2)
        by_layer = (update * slopes[2]).sum((1, 2))[:, None]
        for name, value in (("channels", by_channel), ("groups", by_group), ("layer", by_layer)):
            before = self._slopes.get(name, (torch.zeros(()), torch.zeros(())))
            wide = value.double()
            self._slopes[name] = before[0] + wide.abs().sum(0), before[1] + wide.square().sum(0)

    def means(self) -> LayerStatistics:
        slopes = {
            name: GateDerivatives(absolute=absolute / self._sequences, squared=squared / self._sequences)
            for name, (absolute, squared) in self._slopes.items()
        }
        return LayerStatistics(
            channel_gram=self._grams["down"] / self._tokens,
            head_gram=self._grams["output"] / self._tokens,
            stream_energy=self._energies["after"] / self._tokens,
            update_energy=self._energies["update"] / self._tokens,
            **slopes,
        )


@contextmanager
def _record_layers(model: PreTrainedModel, *, watch_gradients: bool) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Record the inputs of both output projections, and the stream before and behind each layer, in one pass."""
    records: list[dict[str, torch.Tensor]] = [{} for _ in model.model.layers]

    def keep_input(record: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            if watch_gradients and not inputs[0].requires_grad:
                inputs[0].requires_grad_()  # all before it is frozen
            record[name] = inputs[0]

        return hook

    def keep_stream(record: dict[str, torch.Tensor]) -> Callable[..., None]:
        def hook(
            _module: Any, inputs: tuple[torch.Tensor, ...], named: dict[str, torch.Tensor], output: torch.Tensor
        ) -> None:
            record["before"] = inputs[0] if inputs else named["hidden_states"]
            record["after"] = output

        return hook

    handles = []
    for layer, record in zip(model.model.layers, records, strict=True):
        handles.append(layer.mlp.down_proj.register_forward_pre_hook(keep_input(record, "down")))
        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(keep_input(record, "output")))
        handles.append(layer.register_forward_hook(keep_stream(record), with_kwargs=True))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()
