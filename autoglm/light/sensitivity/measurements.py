"""Statistics of every parameter, reduced to sums over rows and columns, from which those of any group follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.light.sensitivity.groups import Group, Indices
from fedglm.autoglm.tasks.task import Batch, Task

Gradients = dict[str, torch.Tensor]
"""Gradient of the mean loss by the parameter's name."""


class Sums:
    """Sums of non-negative or signed entries over each parameter's rows and columns, float64.

    Args:
        entries: Tensors of the shape of the parameters, by name: matrices and vectors.
    """

    def __init__(self, entries: dict[str, torch.Tensor]) -> None:
        self._rows = {name: tensor.double().flatten(1).sum(1) if tensor.dim() > 1 else tensor.double()
                      for name, tensor in entries.items()}  # fmt: skip
        self._columns = {name: tensor.double().sum(0) for name, tensor in entries.items() if tensor.dim() > 1}

    def total(self, *, rows: Indices, columns: Indices) -> float:
        """Return the sum over some rows and some columns of the parameters."""
        parts = [self._rows[name][chosen].sum() for name, chosen in rows.items()]
        parts += [self._columns[name][chosen].sum() for name, chosen in columns.items()]
        return float(sum(parts)) if parts else 0.0

    def rows(self, name: str) -> torch.Tensor:
        """Return the sums over each row of a matrix, (rows,), float64."""
        return self._rows[name]

    def columns(self, name: str) -> torch.Tensor:
        """Return the sums over each column of a matrix, (columns,), float64."""
        return self._columns[name]


def parameter_count(model: torch.nn.Module, group: Group) -> int:
    """Count the parameters of a group."""
    shapes = {name: tuple(model.get_parameter(name).shape) for name in (*group.rows, *group.columns)}
    of_rows = sum(len(chosen) * int(np.prod(shapes[name][1:])) for name, chosen in group.rows.items())
    return of_rows + sum(len(chosen) * shapes[name][0] for name, chosen in group.columns.items())


@dataclass(frozen=True, eq=False, kw_only=True)
class GradientStatistics:
    """What gradients of single sequences say of every parameter.

    Attributes:
        taylor: For each sequence the sums of gradient times weight: minus their sum over a group is the first-order
            change of the loss when it is removed (Molchanov et al., arXiv:1906.10771, equation 8).
        fisher: Sums of squared gradient times squared weight, mean over the sequences: twice the second-order change,
            with the empirical Fisher information for the Hessian (LeCun et al., "Optimal Brain Damage", NIPS 1989).
    """

    taylor: tuple[Sums, ...]
    fisher: Sums

    def taylor_of(self, group: Group) -> float:
        """Return the root mean square, over the sequences, of the first-order change when the group is removed."""
        rows = group.rows if not group.columns else {}
        changes = [part.total(rows=rows, columns=group.columns) for part in self.taylor]
        return float(np.sqrt(np.mean(np.square(changes))))

    def fisher_of(self, group: Group) -> float:
        """Return the second-order change of the loss when the group is removed, by the diagonal Fisher information."""
        rows = group.rows if not group.columns else {}
        return self.fisher.total(rows=rows, columns=group.columns) / 2


def measure_gradients(model: PreTrainedModel, task: Task, examples: Examples) -> GradientStatistics:
    """Measure the gradients of each sequence's own loss, in float32."""
    taylor, squares = [], dict[str, torch.Tensor]()
    weights = dict(model.named_parameters())
    for number in range(len(examples)):
        gradients = _differentiate(model, task, examples.batch([number]))
        products = {name: gradient * weights[name].detach() for name, gradient in gradients.items()}
        taylor.append(Sums(products))
        for name, product in products.items():
            squares[name] = squares.get(name, torch.zeros_like(product)) + product.square() / len(examples)
    return GradientStatistics(taylor=tuple(taylor), fisher=Sums(squares))


def _differentiate(model: PreTrainedModel, task: Task, batch: Batch) -> Gradients:
    with _differentiable(model) as parameters:
        loss = task.sequence_losses(model, batch).mean()
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient.detach()
        for (name, parameter), gradient in zip(parameters.items(), found, strict=True)
    }


def measure_hessian_diagonal(
    model: PreTrainedModel, task: Task, examples: Examples, *, probes: int, seed: int, batch_size: int
) -> Sums:
    """Estimate the Hessian's diagonal by Hutchinson's method; its sum over a group is the trace of that block.

    E[v * H v] for v of independent signs is the diagonal (Bekas et al., 2007; HAWQ-V2, Dong et al., arXiv:1911.03852,
    section 3.2). Attention is computed eagerly: PyTorch's fused kernel has no second derivative on a CPU.

    Args:
        model: The model; its attention implementation is restored.
        task: Task of the model.
        examples: Sequences of the loss.
        probes: Number of probes v.
        seed: Seed of the probes.
        batch_size: Number of sequences in memory at once.
    """
    generator = torch.Generator().manual_seed(seed)
    estimate = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    weights = task.prediction_counts(examples)
    parts = torch.split(torch.arange(len(examples)), batch_size)
    with _eager(model), _differentiable(model) as parameters:
        for _ in range(probes):
            probe = {name: _draw_signs(parameter, generator) for name, parameter in parameters.items()}
            for part in parts:
                share = (weights[part] / weights.sum().clamp(min=1)).float()
                losses = task.sequence_losses(model, examples.batch(part))
                loss = (losses * share.to(losses.device)).sum()
                gradients = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
                pairs = zip(gradients, probe.values(), strict=True)
                slope = sum(((gradient * signs).sum() for gradient, signs in pairs if gradient is not None), loss * 0)
                products = torch.autograd.grad(slope, list(parameters.values()), allow_unused=True)
                for name, product in zip(parameters, products, strict=True):
                    if product is not None:
                        estimate[name] += probe[name] * product.detach() / probes
    return Sums(estimate)


def _draw_signs(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    return (torch.randint(2, like.shape, generator=generator) * 2 - 1).to(like)


def measure_input_energy(
    model: PreTrainedModel, task: Task, examples: Examples, *, batch_size: int = 32
) -> dict[str, torch.Tensor]:
    """Measure the mean square of each input of every Linear, over the tokens that are no padding.

    Returns:
        (columns,), float64, by the name of the weight; for the embedding the frequency of each token, (rows,).
    """
    energy: dict[str, torch.Tensor] = {}
    mask = torch.ones(0)

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def add(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            if inputs[0].shape[:2] == mask.shape:
                found = inputs[0][mask].double().square().sum(0).cpu()
                energy[name] = energy.get(name, torch.zeros_like(found)) + found

        return add

    linears = [(name, part) for name, part in model.named_modules() if isinstance(part, torch.nn.Linear)]
    handles = [part.register_forward_pre_hook(watch(f"{name}.weight")) for name, part in linears]
    rows = len(model.get_input_embeddings().get_parameter("weight"))
    frequency, tokens = torch.zeros(rows, dtype=torch.float64), 0
    try:
        for part in torch.split(torch.arange(len(examples)), batch_size):
            batch = examples.batch(part)
            mask = batch["attention_mask"].bool()
            frequency += torch.bincount(batch["input_ids"][mask], minlength=rows)
            tokens += int(mask.sum())
            with torch.no_grad():
                task.sequence_losses(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    energy[f"{model.base_model_prefix}.embed_tokens.weight"] = frequency
    return {name: total / max(tokens, 1) for name, total in energy.items()}


@contextmanager
def _differentiable(model: torch.nn.Module) -> Iterator[dict[str, torch.nn.Parameter]]:
    """Have all parameters require gradients within the block."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield dict(model.named_parameters())
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Have attention computed by plain operations within the block."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
