"""A run that is audited empirically: its model, and records that the audit can train on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch

from fedglm.audit.empirical.probe import TrainingProbe
from fedglm.autoglm.data.examples import Examples
from fedglm.autoglm.errors import DataError
from fedglm.compression.downlink import vector_sha256
from fedglm.core.code_identity import code_sha256
from fedglm.core.files import storage_errors
from fedglm.privacy.log.chained_file import utc_now
from fedglm.run_folder.names import AUDIT, INITIAL, RUN, SCENARIO
from fedglm.run_folder.record import ReportError
from fedglm.scenarios.scenario import Scenario
from fedglm.scenarios.stage import BuiltScenario, build_scenario


@dataclass(frozen=True)
class AuditedRun:
    """A run whose model and data were rebuilt.

    Attributes:
        folder: Folder of the run.
        built: Data and model of its scenario.
        base: (d,) float32, weights that the run started from.
        records: Whether the records are the run's own. Those of real sites are at the sites: the records that their
            scenario gives to a simulation stand in for them.
    """

    folder: Path
    built: BuiltScenario
    base: npt.NDArray[np.float32]
    records: Literal["run", "stand-in"]

    def make_probe(self, records: Examples) -> TrainingProbe:
        """Make a probe of the run's model with some records."""
        built = self.built
        return TrainingProbe(built.model.module, built.data.task, records, self.base, built.scenario.training)

    def make_header(self) -> dict[str, Any]:
        """Return the fields that each file of an empirical audit begins with: see `results`."""
        precision = self.make_probe(self.built.data.sites[0].train).precision
        return {
            "code": code_sha256(),
            "model": vector_sha256(self.base),
            "made": utc_now(),
            "records": self.records,
            "precision": f"{precision.name} on {precision.device.type}",
        }


def open_run(run: Path, file_name: str) -> AuditedRun:
    """Rebuild a run's model and data for an audit of it.

    The result of an earlier audit is removed first: an audit that ends with an error must not leave a result behind.

    Args:
        run: Folder of the run.
        file_name: Name of the audit's file in the run's `audit/`.

    Raises:
        ReportError: The folder holds no run, or there are no records to stand in for those at its sites.
        StorageError: An earlier result cannot be removed.
    """
    path, earlier = run / SCENARIO, run / AUDIT / file_name
    if not path.is_file():
        raise ReportError(f"{run} holds no run: name a folder that fedglm simulate or fedglm run has made")
    with storage_errors(earlier):
        earlier.unlink(missing_ok=True)
    torch.set_num_threads(1)  # more threads would add in other orders, which gives other bits
    scenario = Scenario.from_toml(path.read_text(), origin=str(path))
    if not (run / RUN).is_file():
        built = build_scenario(scenario.to_toml())
        return AuditedRun(run, built, built.model.initial, "run")
    try:
        built = build_scenario(scenario.to_toml())
    except DataError as exc:
        raise ReportError(f"the records of {run} are at its sites, and there are none to stand in: {exc}") from exc
    return AuditedRun(run, built, _read_initial(run, built.model.layout.size), "stand-in")


def _read_initial(run: Path, size: int) -> npt.NDArray[np.float32]:
    try:
        content = (run / INITIAL).read_bytes()
    except OSError as exc:
        raise ReportError(f"{run / INITIAL} cannot be read: {exc.strerror}") from exc
    if len(content) != 4 * size:
        raise ReportError(f"{run / INITIAL} is not of the model of its scenario: {len(content):,} bytes")
    return np.frombuffer(content, "<f4").astype(np.float32)
