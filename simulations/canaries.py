"""The empirical audit of a run: its model, its records, its clipping, on a training of the audit's own."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from fedglm.client.audit_bench import Bench
from fedglm.client.audit_trials import TrialResult, run_trials
from fedglm.client.canary_audit import CanaryResult, audited_mechanism, gradient_canaries, record_canaries
from fedglm.privacy.durable import write_atomically
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.noise import GaussianNoise
from fedglm.privacy.signed_log import AUDIT
from fedglm.server.rows import to_json
from fedglm.simulations.empirical import CANARIES
from fedglm.simulations.nodes import build_stage
from fedglm.simulations.privacy import unit_of
from fedglm.simulations.run_record import ReportError
from fedglm.simulations.scenario import Scenario

_MOST_RECORDS: Final = 64


@dataclass(frozen=True)
class EmpiricalAudit:
    """What an audit found.

    Attributes:
        canaries: Each kind's.
        trials: Each one's.
    """

    canaries: list[CanaryResult]
    trials: list[TrialResult]

    @property
    def passed(self) -> bool:
        """Whether nothing contradicts the claim."""
        return not any(result.contradicts for result in self.canaries) and all(trial.passed for trial in self.trials)

    def to_fields(self) -> dict[str, Any]:
        """As plain values."""
        kinds = [
            {**asdict(result), "bound": result.bound, "contradicts": result.contradicts, "doubts": result.doubts}
            for result in self.canaries
        ]
        return {"passed": self.passed, "canaries": kinds, "trials": [asdict(trial) for trial in self.trials]}


def audit_canaries(run: Path, epsilon: float, told: Callable[[str], None] = lambda _: None) -> EmpiricalAudit:
    """Audit the training that a run's nodes do, and keep the result in the run's folder.

    Args:
        run: A run's folder.
        epsilon: The claim to audit, above 0 and at most 2; noise is calibrated to it, whatever the run's own is.
        told: Hears what is done next.

    Raises:
        ReportError: The folder holds no run.
        PrivacyError: The claim cannot be audited.
    """
    bench, private, unit = _bench(run)
    mechanism, noise = (
        audited_mechanism(epsilon, private.clipping_norm, unit, private.records_per_unit),
        GaussianNoise(),
    )
    told("gradient canaries")
    found = [gradient_canaries(bench, mechanism, noise)]
    told("record canaries")
    try:
        found.append(record_canaries(bench, mechanism, noise))
    except PrivacyError as exc:
        told(f"left out: {exc}")
    told("trials")
    audit = EmpiricalAudit(found, list(run_trials(bench, mechanism, noise)))
    write_atomically(run / AUDIT / CANARIES, to_json(audit.to_fields(), indent=1) + "\n")
    return audit


def _bench(run: Path) -> tuple[Bench, Any, str]:
    path = run / "scenario.toml"
    if not path.is_file():
        raise ReportError(f"{run} holds no run: name a folder that fedglm simulate or fedglm run has made")
    torch.set_num_threads(1)
    scenario = Scenario.from_toml(path.read_text(), origin=str(path))
    stage = build_stage(scenario.to_toml())
    train = stage.data.sites[0].train
    records = train.select(np.arange(min(len(train), _MOST_RECORDS)))
    bench = Bench(stage.workbench.model, stage.data.task, records, stage.workbench.initial)
    return bench, scenario.privacy, unit_of(scenario)
