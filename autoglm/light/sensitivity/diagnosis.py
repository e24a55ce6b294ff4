"""What a model can spare: the loss without each group and with it quantized, beside scores that would predict it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError
from fedglm.autoglm.light.sensitivity.groups import Group, Indices, Kind, list_groups, replaced, without
from fedglm.autoglm.light.sensitivity.measurements import (
    GradientStatistics,
    Sums,
    measure_gradients,
    measure_hessian_diagonal,
    measure_input_energy,
    parameter_count,
)
from fedglm.autoglm.light.sensitivity.redundancy import Redundancy, measure_redundancy
from fedglm.autoglm.tasks.task import Task
from fedglm.inference.weights.quantized import QuantizedMatrix

Quantize = Callable[[npt.NDArray[np.float32]], QuantizedMatrix]
"""Quantizes a matrix (rows, columns), float32."""

Score = Literal["taylor", "fisher", "activation", "trace", "l1", "svd"]
SCORES: tuple[Score, ...] = ("taylor", "fisher", "activation", "trace", "l1", "svd")
TOP_VALUES = 0.1
"""Share of singular values, the largest, whose energy is measured: the articles' 10 %."""


class DiagnosisSettings(BaseModel):
    """Settings of a diagnosis.

    Attributes:
        sequences: Number of sequences, the first of the examples.
        channels: Number of single channels of each layer that are removed one by one.
        probes: Number of probes of the Hessian's trace.
        removed_shares: Shares of every layer's channels that are removed together in the order of each score.
        redundant_from: Similarity from which a head or channel is redundant.
        seed: Seed of the drawn channels and of the probes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sequences: int = Field(default=32, ge=1, le=65_536)
    channels: int = Field(default=16, ge=0, le=65_536)
    probes: int = Field(default=4, ge=1, le=10_000)
    removed_shares: tuple[float, ...] = Field(default=(0.1, 0.3), max_length=20)
    redundant_from: float = Field(default=0.95, gt=0, le=1)
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class GroupSensitivity:
    """A group, what became of the loss, and the scores.

    Attributes:
        kind: Kind of the group.
        layer: Number of the layer, from 0; None for the embedding.
        name: Name of the group.
        parameters: Number of its parameters.
        removal: Rise of the loss without it, in nats; None where it cannot be removed.
        quantization: Rise of the loss with its matrices quantized, in nats; None for a single channel.
        error: Squared error of its quantized weights; None for a single channel.
        taylor: Root mean square of the first-order change of a sequence's loss without it, in nats.
        fisher: Second-order change of the loss without it by the diagonal Fisher information, in nats.
        activation: Norm of the outgoing columns, each weighted by the root mean square of its input.
        trace: Trace of the loss's Hessian in its parameters, per parameter.
        l1: Mean magnitude of its weights: the articles' score.
        svd: Share of the squared singular values of its matrices that the largest tenth holds; None for a channel.
    """

    kind: Kind
    layer: int | None
    name: str
    parameters: int
    removal: float | None
    quantization: float | None
    error: float | None
    taylor: float
    fisher: float
    activation: float
    trace: float
    l1: float
    svd: float | None


@dataclass(frozen=True, kw_only=True)
class RemovalCurve:
    """What a score is good for: the loss without those channels that it puts last.

    Attributes:
        order: The score, or ``random``.
        share: Share of every layer's channels that is removed, 0 to 1.
        rises: Rise of the loss, in nats; for ``random`` those of three draws.
    """

    order: str
    share: float
    rises: tuple[float, ...]

    @property
    def rise(self) -> float:
        """Mean rise of the loss, in nats."""
        return float(np.mean(self.rises))


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Result of a diagnosis.

    Attributes:
        loss: Loss of the model as it is, in nats.
        sequences: Number of sequences that all of it was measured on.
        rows: Groups, in the model's order.
        curves: Losses without the last channels of each order.
        redundancy: Similar heads and channels, by layer.
        settings: Settings of the diagnosis.
    """

    loss: float
    sequences: int
    rows: tuple[GroupSensitivity, ...]
    curves: tuple[RemovalCurve, ...]
    redundancy: tuple[Redundancy, ...]
    settings: DiagnosisSettings = field(default_factory=DiagnosisSettings)


def diagnose(
    model: PreTrainedModel,
    task: Task,
    examples: Examples,
    *,
    quantize: Quantize,
    settings: DiagnosisSettings | None = None,
    progress: Callable[[float], None] | None = None,
) -> Diagnosis:
    """Diagnose a model: measure the loss without each group and with it quantized, and score every group.

    The model is unchanged afterwards, to the bit. It takes about 2 passes over the sequences a group, and 6 a probe.

    Args:
        model: A GLM in float32, on the CPU.
        task: Its task.
        examples: Public or model-made sequences.
        quantize: Quantizes a matrix; the loss with quantization is that of its values.
        settings: Settings of the diagnosis.
        progress: Called with the share that is done, 0 to 1.

    Raises:
        DataError: There are no examples.
        ModelError: The model is no GLM.
    """
    chosen, done = settings or DiagnosisSettings(), progress or (lambda _: None)
    if not len(examples):
        raise DataError("a diagnosis needs sequences to measure the loss on; there are none")
    groups = list_groups(model, channels=chosen.channels, seed=chosen.seed)
    few = examples.select(range(min(chosen.sequences, len(examples))))
    training = model.training
    model.eval()
    try:
        return _Diagnostician(model, task, few, quantize, chosen).run(groups, done)
    finally:
        model.train(training)


class _Diagnostician:
    """Holds what is measured once for all groups."""

    def __init__(
        self, model: PreTrainedModel, task: Task, examples: Examples, quantize: Quantize, settings: DiagnosisSettings
    ) -> None:
        self._model, self._task, self._examples, self._settings = model, task, examples, settings
        self._quantize = quantize
        self._loss = task.evaluate(model, examples).loss
        self._quantized: dict[str, torch.Tensor] = {}

    def run(self, groups: list[Group], progress: Callable[[float], None]) -> Diagnosis:
        model, task, examples, settings = self._model, self._task, self._examples, self._settings
        gradients = measure_gradients(model, task, examples)
        hessian = measure_hessian_diagonal(
            model, task, examples, probes=settings.probes, seed=settings.seed, batch_size=16
        )
        energy = measure_input_energy(model, task, examples)
        l1 = Sums({name: parameter.detach().abs() for name, parameter in model.named_parameters()})
        rows = []
        for number, group in enumerate(groups):
            rows.append(self._measure(group, gradients, hessian, energy, l1))
            progress(0.1 + 0.8 * (number + 1) / len(groups))
        curves = self._remove_in_order(gradients, hessian, energy, l1)
        redundancy = measure_redundancy(model, task, examples, threshold=settings.redundant_from)
        progress(1.0)
        return Diagnosis(
            loss=self._loss,
            sequences=len(examples),
            rows=tuple(rows),
            curves=tuple(curves),
            redundancy=tuple(redundancy),
            settings=settings,
        )

    def _measure(
        self, group: Group, gradients: GradientStatistics, hessian: Sums, energy: dict[str, torch.Tensor], l1: Sums
    ) -> GroupSensitivity:
        count = parameter_count(self._model, group)
        whole = group.kind != "channel"
        coded = self._quantize_group(group) if whole else {}
        return GroupSensitivity(
            kind=group.kind,
            layer=group.layer,
            name=group.name,
            parameters=count,
            removal=self._rise(without(self._model, group.columns)) if group.columns else None,
            quantization=self._rise(coded) if whole else None,
            error=self._squared_error(coded) if whole else None,
            taylor=gradients.taylor_of(group),
            fisher=gradients.fisher_of(group),
            activation=self._weigh_by_activations(group, energy),
            trace=hessian.total(rows=group.rows, columns=group.columns) / count,
            l1=l1.total(rows=group.rows, columns=group.columns) / count,
            svd=self._svd_energy(group) if whole else None,
        )

    def _rise(self, tensors: dict[str, torch.Tensor]) -> float:
        with replaced(self._model, tensors):
            return self._task.evaluate(self._model, self._examples).loss - self._loss

    def _quantize_group(self, group: Group) -> dict[str, torch.Tensor]:
        """Return the group's matrices with its own rows and columns quantized, each with the scales of the whole."""
        tensors: dict[str, torch.Tensor] = {}
        for name in (*group.rows, *group.columns):
            weight = self._model.get_parameter(name).detach()
            if weight.dim() != 2:
                continue  # biases stay float
            if name not in self._quantized:
                coded = self._quantize(weight.float().cpu().numpy())
                self._quantized[name] = torch.from_numpy(coded.dequantize()).to(weight)
            tensors[name] = weight.clone()
            if (rows := group.rows.get(name)) is not None:
                tensors[name][rows] = self._quantized[name][rows]
            if (columns := group.columns.get(name)) is not None:
                tensors[name][:, columns] = self._quantized[name][:, columns]
        return tensors

    def _squared_error(self, tensors: dict[str, torch.Tensor]) -> float:
        pairs = ((tensor, self._model.get_parameter(name).detach()) for name, tensor in tensors.items())
        return float(sum((coded - weight).double().square().sum() for coded, weight in pairs))

    def _weigh_by_activations(self, group: Group, energy: dict[str, torch.Tensor]) -> float:
        total = 0.0
        for name, columns in group.columns.items():
            norms = self._model.get_parameter(name).detach().double().square().sum(0).cpu()
            total += float((norms * energy[name])[columns].sum())
        for name in () if group.columns else group.rows:  # the embedding: each row by its token's frequency
            norms = self._model.get_parameter(name).detach().double().square().sum(1).cpu()
            total += float((norms * energy[name]).sum())
        return float(np.sqrt(total))

    def _svd_energy(self, group: Group) -> float:
        held, total = 0.0, 0.0
        for indices, axis in ((group.rows, 0), (group.columns, 1)):
            for name, chosen in indices.items():
                weight = self._model.get_parameter(name).detach()
                if weight.dim() == 2:
                    squares = torch.linalg.svdvals(weight.index_select(axis, chosen).double()).square()
                    held += float(squares[: max(1, round(TOP_VALUES * len(squares)))].sum())
                    total += float(squares.sum())
        return held / total if total else 0.0

    def _remove_in_order(
        self, gradients: GradientStatistics, hessian: Sums, energy: dict[str, torch.Tensor], l1: Sums
    ) -> list[RemovalCurve]:
        layers = len(self._model.base_model.layers)
        downs = [f"{self._model.base_model_prefix}.layers.{layer}.mlp.down_proj.weight" for layer in range(layers)]
        generator = torch.Generator().manual_seed(self._settings.seed)
        orders: dict[str, list[Indices]] = {
            "taylor": [{name: _taylor_columns(gradients, name).argsort() for name in downs}],
            "fisher": [{name: gradients.fisher.columns(name).argsort() for name in downs}],
            "activation": [{name: self._column_norms(name, energy).argsort() for name in downs}],
            "trace": [{name: self._channel_sums(hessian, name).argsort() for name in downs}],
            "l1": [{name: self._channel_sums(l1, name).argsort() for name in downs}],
            "random": [
                {name: torch.randperm(self._model.get_parameter(name).shape[1], generator=generator) for name in downs}
                for _ in range(3)
            ],
        }
        curves = []
        for share in self._settings.removed_shares:
            for order, draws in orders.items():
                rises = tuple(self._rise_without(draw, share) for draw in draws)
                curves.append(RemovalCurve(order=order, share=share, rises=rises))
        return curves

    def _rise_without(self, order: Indices, share: float) -> float:
        columns = {name: channels[: round(share * len(channels))] for name, channels in order.items()}
        return self._rise(without(self._model, columns))

    def _column_norms(self, name: str, energy: dict[str, torch.Tensor]) -> torch.Tensor:
        weight: torch.Tensor = self._model.get_parameter(name).detach()
        return weight.double().square().sum(0).cpu() * energy[name]

    def _channel_sums(self, sums: Sums, down: str) -> torch.Tensor:
        gate_up = down.replace("down_proj", "gate_up_proj")
        gates, ups = sums.rows(gate_up).chunk(2)
        return sums.columns(down) + gates + ups


def _taylor_columns(gradients: GradientStatistics, name: str) -> torch.Tensor:
    return torch.stack([part.columns(name) for part in gradients.taylor]).square().mean(0)
