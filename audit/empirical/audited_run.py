"""A run that is audited empirically: its model, and records that the audit can train on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from fedglm.audit.empirical.probe import Bench
from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError
from fedglm.compression.downlink import vector_sha256
from fedglm.core.code_identity import code_sha256
from fedglm.core.files import storage_errors
from fedglm.privacy.log.chained_file import now
from fedglm.run_folder.names import AUDIT, INITIAL, RUN, SCENARIO
from fedglm.run_folder.record import ReportError
from fedglm.scenarios.scenario import Scenario
from fedglm.scenarios.stage import BuiltScenario, build_scenario


@dataclass(frozen=True)
class AuditedRun:
    """A run, built anew.

    Attributes:
        folder: The run's.
        stage: Data and model of its scenario.
        base: float32 vector of the weights that it started from.
        records: Whether the records are the run's own. Those of real sites are at the sites: what their scenario deals
            to a simulation stands in for them.
    """

    folder: Path
    stage: BuiltScenario
    base: npt.NDArray[np.float32]
    records: Literal["run", "stand-in"]

    def bench(self, records: Examples) -> Bench:
        """A bench with the run's model and some records."""
        stage = self.stage
        return Bench(stage.model.module, stage.data.task, records, self.base, stage.scenario.training)

    def stamp(self) -> dict[str, Any]:
        """What a file of an audit says of itself: see `empirical`."""
        precision = self.bench(self.stage.data.sites[0].train).precision
        return {
            "code": code_sha256(),
            "model": vector_sha256(self.base),
            "made": now(),
            "records": self.records,
            "precision": f"{precision.name} on {precision.device.type}",
        }


def open_run(run: Path, kept: str) -> AuditedRun:
    """Build a run's model and data for an audit of it.

    What an earlier audit kept is removed first: one that ends with an error must not leave a result behind.

    Args:
        run: A run's folder.
        kept: Name of the audit's file in the run's `audit/`.

    Raises:
        ReportError: The folder holds no run, or there are no records to stand in for those at its sites.
        StorageError: An earlier result cannot be removed.
    """
    path, old = run / SCENARIO, run / AUDIT / kept
    if not path.is_file():
        raise ReportError(f"{run} holds no run: name a folder that fedglm simulate or fedglm run has made")
    with storage_errors(old):
        old.unlink(missing_ok=True)
    torch.set_num_threads(1)  # sums in other orders give other bits
    scenario = Scenario.from_toml(path.read_text(), origin=str(path))
    if not (run / RUN).is_file():
        stage = build_scenario(scenario.to_toml())
        return AuditedRun(run, stage, stage.model.initial, "run")
    try:
        stage = build_scenario(scenario.to_toml())
    except DataError as exc:
        raise ReportError(f"the records of {run} are at its sites, and there are none to stand in: {exc}") from exc
    return AuditedRun(run, stage, _initial(run, stage.model.layout.size), "stand-in")


def _initial(run: Path, size: int) -> npt.NDArray[np.float32]:
    try:
        content = (run / INITIAL).read_bytes()
    except OSError as exc:
        raise ReportError(f"{run / INITIAL} cannot be read: {exc.strerror}") from exc
    if len(content) != 4 * size:
        raise ReportError(f"{run / INITIAL} is not of the model of its scenario: {len(content):,} bytes")
    return np.frombuffer(content, "<f4").astype(np.float32)
