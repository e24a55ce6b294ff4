"""The device that a light model is for: what its latency table predicts, and the formats that are fastest on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from fedglm.autoglm.light.device.phases import PhaseFormats
from fedglm.autoglm.light.graph.formats import GraphFormat, Kind, choose_formats
from fedglm.autoglm.light.plan.errors import LightenError
from fedglm.autoglm.light.plan.goals import Goals
from fedglm.autoglm.light.plan.planned_device import PlannedDevice
from fedglm.inference.device.device_file import DeviceFile, read_device_file
from fedglm.inference.device.latency_table import Latency
from fedglm.inference.device.operations import Format
from fedglm.inference.device.tiny_model import tiny_config
from fedglm.inference.errors import InferenceError
from fedglm.inference.runtime.architecture import LANGUAGE_MODEL, read_architecture
from fedglm.inference.weights.model import NumpyModel

HELD_OUT_ERROR: Final = Latency(decode_ms=0.09, prefill_ms=0.04)
"""Median relative error of a table's predictions for 12 models that it never saw: the greater of two runs of
`benchmarks/latency_table.py` on one machine (docs/devices.md)."""
PROMPT_TOKENS: Final = 32
"""Length of the prompt whose reading is predicted, and behind which a token is."""

_NARROW_FIRST: Final[tuple[GraphFormat, ...]] = ("int4", "int8", "fp32")


@dataclass(frozen=True, eq=False, kw_only=True)
class TargetDevice:
    """A device, by the file that `fedglm device probe` wrote there.

    Attributes:
        file: Its content.
        planned: How a plan names it.
    """

    file: DeviceFile
    planned: PlannedDevice

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Read a device file, and check that its table predicts each format.

        Raises:
            InferenceError: There is none, it is damaged, or its table lacks what a prediction needs.
        """
        content = read_device_file(Path(path))
        file = DeviceFile.parse(content, str(path))
        digest = hashlib.sha256(content).hexdigest()
        device = cls(file=file, planned=PlannedDevice(path=str(path), sha256=digest))
        try:
            for form in _NARROW_FIRST:
                device._check(file.latency.predict(tiny_config(1), form, past=PROMPT_TOKENS))
        except InferenceError as exc:
            raise InferenceError(f"{path}: {exc}") from exc
        return device

    @property
    def name(self) -> str:
        """What it is called: the processor and the operating system."""
        return f"{self.file.processor.name or self.file.processor.architecture}, {self.file.system}"

    @property
    def basis(self) -> str:
        """How times of it are known, in words."""
        decode, prefill = HELD_OUT_ERROR
        return (
            f"predicted for {self.name} by its table ({self.file.latency.threads} thread(s)); median error on models "
            f"that a table never saw: {decode:.1%} a token, {prefill:.1%} a prompt"
        )

    def check_goals(self, goals: Goals) -> None:
        """Check that the device has the memory that the goals allow.

        Raises:
            LightenError: It has less.
        """
        limit = self.file.memory.limit_bytes
        if goals.max_memory_bytes is not None and goals.max_memory_bytes > limit:
            raise LightenError(
                f"memory={goals.max_memory_bytes / 1e6:g}MB is more than {self.planned.path} has: name at most "
                f"{limit / 1e6:.0f}MB"
            )

    def predict(self, model: NumpyModel, formats: PhaseFormats) -> Latency:
        """Predict the milliseconds of a prompt of `PROMPT_TOKENS` and of a token after it.

        A classifier, which decodes nothing, has the time of a row of the prompt's length twice.

        Args:
            model: The model.
            formats: Formats of its graphs.

        Raises:
            InferenceError: The model fits no kernel, or the table lacks what a prediction needs.
        """
        prefill = self._predict(model, formats.prefill).prefill_ms
        if read_architecture(model.config).kind != LANGUAGE_MODEL:
            return Latency(decode_ms=prefill, prefill_ms=prefill)
        return Latency(decode_ms=self._predict(model, formats.decode).decode_ms, prefill_ms=prefill)

    def choose_phases(self, model: NumpyModel, *, one_graph: bool) -> PhaseFormats:
        """Choose the formats that the table says are fastest.

        A wider format than the narrowest, or a second graph, is chosen only where it is faster by more than the
        table's own error.

        Args:
            model: The model.
            one_graph: Whether one graph is to serve both phases, for two take the memory of both.

        Raises:
            InferenceError: As `predict`.
        """
        found = {form: self._predict(model, form) for form in _NARROW_FIRST}
        by_token = {form: latency.decode_ms for form, latency in found.items()}
        by_prompt = {form: latency.prefill_ms for form, latency in found.items()}
        if read_architecture(model.config).kind != LANGUAGE_MODEL:
            form = _find_fastest(by_prompt, "int4", HELD_OUT_ERROR.prefill_ms)
            return PhaseFormats(prefill=form, decode=form)
        decode = _find_fastest(by_token, "int4", HELD_OUT_ERROR.decode_ms)
        prefill = decode if one_graph else _find_fastest(by_prompt, decode, HELD_OUT_ERROR.prefill_ms)
        return PhaseFormats(prefill=prefill, decode=decode)

    def _predict(self, model: NumpyModel, form: GraphFormat) -> Latency:
        chosen = choose_formats(model.tensors, model.config, form)
        forms: dict[str, Format] = {name: _to_measured(each.kind) for name, each in chosen.items()}
        past = min(PROMPT_TOKENS, read_architecture(model.config).max_length // 2)
        return self._check(self.file.latency.predict(model.config, forms, past=max(1, past)))

    def _check(self, latency: Latency) -> Latency:
        if min(latency) <= 0:
            raise LightenError(f"{self.planned.path} predicts no time at all for a model: probe the device again")
        return latency


def check_device(planned: PlannedDevice | None, device: TargetDevice | None) -> None:
    """Check that a plan is for a device.

    Raises:
        LightenError: It is for another one, or for none.
    """
    if device is None and planned is not None:
        raise LightenError(f"the plan is for the device of {planned.path}: name its file with --device")
    if device is not None and planned is None:
        raise LightenError("the plan is for this machine: make a new one with --device and --plan")
    if device is not None and planned is not None and device.planned.sha256 != planned.sha256:
        raise LightenError(
            f"the plan is for another device than {device.planned.path} (its file's SHA-256 begins with "
            f"{planned.sha256[:12]}, not {device.planned.sha256[:12]}): make a new plan with --device and --plan"
        )


def _find_fastest(times: Mapping[GraphFormat, float], usual: GraphFormat, error: float) -> GraphFormat:
    """Return the format of the least time, or the usual one where that is slower by no more than an error."""
    fastest = min(_NARROW_FIRST, key=lambda form: times[form])
    return fastest if times[fastest] * (1 + error) < times[usual] else usual


def _to_measured(kind: Kind) -> Format:
    """Return the table's format for how a graph holds a tensor; float16 is looked up as float32 is."""
    return "fp32" if kind == "fp16" else kind
