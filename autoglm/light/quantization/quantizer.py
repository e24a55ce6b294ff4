"""The quantizer: from a model to integer codes, calibrated, repaired, trained and verified, with a report."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import PreTrainedModel

from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError, ModelError
from fedglm.autoglm.light.distillation.training import train_student
from fedglm.autoglm.light.quantization.calibration import measure_moments
from fedglm.autoglm.light.quantization.entropy import measure_entropy
from fedglm.autoglm.light.quantization.grids import Grid, to_float16
from fedglm.autoglm.light.quantization.matrices import list_matrices
from fedglm.autoglm.light.quantization.mixed_bits import allocate_bits, measure_choices
from fedglm.autoglm.light.quantization.post_training import choose_codes
from fedglm.autoglm.light.quantization.qat import EntropyPenalty, attach
from fedglm.autoglm.light.quantization.report import LayerReport, QuantizationReport
from fedglm.autoglm.light.quantization.scheme import Scheme, step_up
from fedglm.autoglm.light.quantization.settings import QatSettings, QuantizationSettings
from fedglm.autoglm.light.quantization.verification import LayerDeviation, compare_layers
from fedglm.autoglm.models.lora import merge_adapters
from fedglm.autoglm.models.release import load_release
from fedglm.autoglm.tasks.task import Task
from fedglm.core.validation_errors import explain
from fedglm.inference.weights.model import NumpyModel, Tensor
from fedglm.inference.weights.quantized import QuantizedMatrix

Progress = Callable[[str, float], None]
"""Called with what is being done (calibrate, allocate, round, train, verify) and the share of it that is done."""


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedModel:
    """A quantized model, without torch and with it.

    Attributes:
        model: The model in numpy: matrices in codes, the rest float32 that is exactly representable in float16.
        reference: The model in torch with the same values, bit for bit; in evaluation mode.
        report: What became of each matrix.
    """

    model: NumpyModel
    reference: PreTrainedModel
    report: QuantizationReport


class Quantizer:
    """Quantizes models; deterministic for a seed, on one thread of torch.

    Args:
        settings: How, as settings or as a plain mapping of them; what is left out takes the defaults.

    Raises:
        ModelError: A key of the mapping is unknown, or a value is not allowed.
    """

    def __init__(self, settings: QuantizationSettings | Mapping[str, Any] | None = None) -> None:
        if not isinstance(settings, QuantizationSettings):
            try:
                settings = QuantizationSettings.model_validate(settings or {})
            except ValidationError as exc:
                raise ModelError(f"quantization: {explain(exc, QuantizationSettings)}") from exc
        self.settings = settings

    def quantize_release(
        self, folder: str | Path, examples: Examples, held_out: Examples, **options: Any
    ) -> QuantizedModel:
        """Quantize the model of a release's folder; as `quantize`.

        Raises:
            ModelError: The folder holds no release.
        """
        model, task = load_release(folder)
        return self.quantize(model, task, examples, held_out, **options)

    def quantize(
        self,
        model: torch.nn.Module,
        task: Task,
        examples: Examples,
        held_out: Examples,
        *,
        teacher: torch.nn.Module | None = None,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> QuantizedModel:
        """Quantize a model; it is left as it was.

        Args:
            model: Model in float32, without parametrizations; adapters are merged.
            task: Its task.
            examples: Public or model-made examples that calibrate, and train where the settings train.
            held_out: Others, on which losses are measured.
            teacher: Teacher where the settings train with one; None takes the model itself.
            seed: Seed of the training's batches.
            progress: Called as the work goes on.

        Raises:
            DataError: There are no examples.
            ModelError: A matrix does not suit its scheme, or a pattern names nothing.
            TrainingError: A loss or a weight is not finite.
        """
        if not len(examples) or not len(held_out):
            raise DataError("quantization needs examples to calibrate on and others to measure on; there are none")
        with _one_thread():
            run = _Run(self.settings, model, task, examples, held_out, teacher, seed, progress or (lambda *_: None))
            return run.run()


class _Run:
    """A quantization under way."""

    def __init__(
        self,
        settings: QuantizationSettings,
        model: torch.nn.Module,
        task: Task,
        examples: Examples,
        held_out: Examples,
        teacher: torch.nn.Module | None,
        seed: int,
        progress: Progress,
    ) -> None:
        self._settings, self._task, self._seed, self._progress = settings, task, seed, progress
        self._examples, self._held_out = examples, held_out
        count = min(len(examples), settings.calibration_sequences)
        self._calibration = examples.select(range(count))
        self._reference = merge_adapters(model)
        self._teacher = teacher if teacher is not None else self._reference
        self._model = copy.deepcopy(self._reference).eval()
        self._matrices = list_matrices(self._model)
        self._moments: dict[str, torch.Tensor] = {}
        self._repairs: dict[str, list[str]] = {}
        self._interrupted = False

    def run(self) -> QuantizedModel:
        settings = self._settings
        if settings.method in ("weighted", "compensated"):
            self._progress("calibrate", 0.0)
            self._moments = measure_moments(self._reference, self._calibration)
        schemes = self._choose_schemes()
        rounded = {name: self._round(name, scheme) for name, scheme in schemes.items()}
        repair = settings.verification.repair
        deviations = () if repair == "none" else self._compare(rounded)
        if repair == "bits":
            deviations = self._give_bits(rounded, deviations)
        codes = {name: grid.to_matrix(chosen) for name, (grid, chosen) in rounded.items()}
        steps = 0
        if settings.qat is not None:
            only = self._failing(deviations) if repair == "train" else None
            if only is None or only:
                steps, codes = self._train(settings.qat, rounded, only)
        return self._finish({name: grid.scheme for name, (grid, _) in rounded.items()}, codes, steps)

    # --- schemes and codes

    def _choose_schemes(self) -> dict[str, Scheme]:
        mixed = self._settings.mixed
        if mixed is None:
            named = {name: self._settings.scheme_of(name) for name in self._matrices}
            return {name: scheme for name, scheme in named.items() if scheme is not None}
        weights = sum(matrix.weight.numel() for matrix in self._matrices.values())
        done = 0

        def measure_loss() -> float:
            nonlocal done
            self._progress("allocate", done / (1 + len(self._matrices) * len(mixed.candidates)))
            done += 1
            return self._task.evaluate(self._model, self._calibration).loss

        choices = measure_choices(
            self._matrices, mixed.candidates, measure_loss, method=self._settings.method, moments=self._moments
        )
        return allocate_bits(choices, budget=mixed.bits_per_weight * weights)

    def _round(self, name: str, scheme: Scheme) -> tuple[Grid, torch.Tensor]:
        self._progress("round", list(self._matrices).index(name) / len(self._matrices))
        weight = self._matrices[name].weight.detach()
        method, moments = self._settings.method, self._moments.get(name)
        if moments is None and method in ("weighted", "compensated"):
            method = "mse"  # an embedding that no Linear shares has no inputs to weigh by
        return choose_codes(weight, scheme, method=method, moments=moments)

    def _compare(self, rounded: Mapping[str, tuple[Grid, torch.Tensor]]) -> tuple[LayerDeviation, ...]:
        """Compare the layers of the model with these codes; its weights are then as before."""
        self._progress("verify", 0.0)
        values = {name: grid.decode(codes) for name, (grid, codes) in rounded.items()}
        before = {name: self._matrices[name].weight.detach().clone() for name in values}
        self._copy(values)
        deviations = self._deviations(values)
        self._copy(before)
        return deviations

    def _deviations(self, values: Mapping[str, torch.Tensor]) -> tuple[LayerDeviation, ...]:
        count = min(len(self._calibration), self._settings.verification.sequences)
        return compare_layers(self._reference, values, self._model, self._calibration.select(range(count)))

    def _failing(self, deviations: tuple[LayerDeviation, ...]) -> tuple[str, ...]:
        return tuple(one.name for one in deviations if one.cosine < self._settings.verification.min_cosine)

    def _give_bits(
        self, rounded: dict[str, tuple[Grid, torch.Tensor]], deviations: tuple[LayerDeviation, ...]
    ) -> tuple[LayerDeviation, ...]:
        """Give failing layers the next more bits, in place, until all pass or have the most."""
        cosines = {one.name: one.cosine for one in deviations}
        while True:
            wider = {}
            for name in self._failing(deviations):
                if (scheme := step_up(rounded[name][0].scheme)) is not None:
                    wider[name] = scheme
            if not wider:
                return deviations
            for name, scheme in wider.items():
                before = rounded[name][0].scheme
                self._repairs.setdefault(name, []).append(f"{before} -> {scheme}: cosine was {cosines[name]:.4f}")
                rounded[name] = self._round(name, scheme)
            deviations = self._compare(rounded)
            cosines = {one.name: one.cosine for one in deviations}

    def _train(
        self, qat: QatSettings, rounded: Mapping[str, tuple[Grid, torch.Tensor]], only: tuple[str, ...] | None
    ) -> tuple[int, dict[str, QuantizedMatrix]]:
        """Train the model quantized; with `only` given, those matrices alone. Return the steps and the codes."""
        if only is not None:
            for name in only:
                self._repairs.setdefault(name, []).append("trained")
            for name, parameter in self._model.named_parameters():
                parameter.requires_grad_(name in only)
        quantization = attach(self._model, {name: grid for name, (grid, _) in rounded.items()}, qat)
        trained = train_student(
            self._model,
            self._teacher,
            self._examples,
            qat.training,
            task=self._task,
            held_out=self._held_out,
            seed=self._seed,
            hooks=(EntropyPenalty(quantization, qat.rate),) if qat.rate else (),
            progress=lambda made: self._progress("train", made.step / made.steps),
        )
        self._interrupted = trained.interrupted
        codes = quantization.export()
        quantization.detach()
        return trained.kept_step, codes

    # --- the result

    def _finish(self, schemes: Mapping[str, Scheme], codes: dict[str, QuantizedMatrix], steps: int) -> QuantizedModel:
        values = {name: torch.from_numpy(matrix.dequantize()) for name, matrix in codes.items()}
        self._copy(values)
        tensors: dict[str, Tensor] = {}
        for name, tensor in self._model.named_parameters():  # a tied output layer once, as the embedding
            if name in codes:
                tensors[name] = codes[name]
            else:
                with torch.no_grad():
                    tensor.copy_(to_float16(tensor))
                tensors[name] = tensor.detach().numpy().copy()
        self._progress("verify", 0.5)
        deviations = {one.name: one for one in self._deviations(values)}
        layers = [self._describe(name, schemes[name], codes[name], deviations.get(name)) for name in codes]
        report = QuantizationReport(
            layers=tuple(sorted(layers, key=lambda one: (one.cosine is None, one.cosine, one.name))),
            loss_before=self._task.evaluate(self._reference, self._held_out).loss,
            loss_after=self._task.evaluate(self._model, self._held_out).loss,
            trained_steps=steps,
            failed=self._failing(tuple(deviations.values())),
            interrupted=self._interrupted,
        )
        config = json.loads(self._model.config.to_json_string()) | {"use_cache": True}
        self._progress("verify", 1.0)
        model = NumpyModel(tensors=tensors, config=config, task=json.loads(self._task.to_json()))
        return QuantizedModel(model=model, reference=self._model, report=report)

    def _describe(
        self, name: str, scheme: Scheme, matrix: QuantizedMatrix, deviation: LayerDeviation | None
    ) -> LayerReport:
        codes = torch.from_numpy(matrix.codes).float()
        return LayerReport(
            name=name,
            scheme=str(scheme),
            weights=codes.numel(),
            bits_per_weight=scheme.bits_per_weight(*matrix.shape),
            entropy=measure_entropy(codes, scheme),
            zeros=float((matrix.dequantize() == 0).mean()),
            cosine=None if deviation is None else deviation.cosine,
            error=None if deviation is None else deviation.error,
            repair=tuple(self._repairs.get(name, ())),
        )

    def _copy(self, values: Mapping[str, torch.Tensor]) -> None:
        """Write values into the model's matrices."""
        with torch.no_grad():
            for name, tensor in values.items():
                self._matrices[name].weight.copy_(tensor)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch compute on one thread: more would add in other orders, which gives other bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
