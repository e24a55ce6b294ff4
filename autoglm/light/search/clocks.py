"""How long models take: measured on this machine, or predicted for another by its latency table."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import Final, Protocol

from fedglm.autoglm.light.device.phases import DENSE, NARROWEST, PhaseFormats
from fedglm.autoglm.light.device.target_device import TargetDevice
from fedglm.autoglm.light.search.costs import open_model, time_phases
from fedglm.inference.device.latency_table import Latency
from fedglm.inference.runtime.session import Session
from fedglm.inference.weights.model import NumpyModel

REFERENCE: Final = "dense"
"""Name of the dense model among those that are timed."""


class Clock(Protocol):
    """Tells how long models take, beside the dense one."""

    @property
    def device(self) -> str:
        """The machine of the times."""

    @property
    def basis(self) -> str:
        """How the times are known, in words."""

    def choose_phases(self, model: NumpyModel) -> PhaseFormats:
        """Choose the formats of a light model's graphs."""

    def time(self, models: Mapping[str, NumpyModel]) -> dict[str, Latency]:
        """Return the times of light models by name, in the formats of `choose_phases`, and of the dense one."""


class MeasuringClock:
    """Measures on this machine, by the runtime of a node.

    Args:
        dense: The dense model.
    """

    def __init__(self, dense: NumpyModel) -> None:
        self._dense = dense
        self._opened: Session | None = None

    @property
    def device(self) -> str:
        """This machine."""
        return f"{platform.machine()}, one thread"

    @property
    def basis(self) -> str:
        """How the times are known, in words."""
        return "measured on this machine, interleaved in one process, the least of several"

    def choose_phases(self, model: NumpyModel) -> PhaseFormats:
        """Choose the formats that are usually fastest, in one graph."""
        del model
        return NARROWEST

    def time(self, models: Mapping[str, NumpyModel]) -> dict[str, Latency]:
        """Measure all models interleaved in this process, as `time_phases` does."""
        if self._opened is None:
            self._opened = open_model(self._dense, DENSE)
        lights = {name: open_model(model, self.choose_phases(model)) for name, model in models.items()}
        return time_phases({REFERENCE: self._opened, **lights})


class PredictingClock:
    """Predicts for a device by its latency table.

    Args:
        dense: The dense model.
        device: The device.
        one_graph: Whether one graph is to serve both phases of a light model.
    """

    def __init__(self, dense: NumpyModel, device: TargetDevice, *, one_graph: bool) -> None:
        self._dense, self._target, self._one_graph = dense, device, one_graph

    @property
    def device(self) -> str:
        """The device."""
        return self._target.name

    @property
    def basis(self) -> str:
        """How the times are known, in words."""
        return self._target.basis

    def choose_phases(self, model: NumpyModel) -> PhaseFormats:
        """Choose the formats that the table says are fastest (`TargetDevice.choose_phases`)."""
        return self._target.choose_phases(model, one_graph=self._one_graph)

    def time(self, models: Mapping[str, NumpyModel]) -> dict[str, Latency]:
        """Predict the times of all models."""
        lights = {name: self._target.predict(model, self.choose_phases(model)) for name, model in models.items()}
        return {REFERENCE: self._target.predict(self._dense, DENSE), **lights}
