"""The canary audit of a run: its model, its records, its clipping, on a training of the audit's own."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from fedglm.audit.empirical.audited_run import open_run
from fedglm.audit.empirical.canaries import (
    MAX_EPSILON,
    audited_mechanism,
    checked_claim,
    gradient_canaries,
    record_canaries,
)
from fedglm.audit.empirical.probe import DoesNotFit
from fedglm.audit.empirical.results import CANARIES, CanaryAudit, CanaryFigures, Trial
from fedglm.audit.empirical.trials import run_trials
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.run_folder.names import AUDIT
from fedglm.scenarios.noise_plan import unit_of

_MAX_RECORDS: Final = 64


def audit_canaries(
    run: Path, epsilon: float | None = None, told: Callable[[str], None] = lambda _: None
) -> CanaryAudit:
    """Audit the training that a run's nodes do, and keep the result in the run's folder.

    Args:
        run: A run's folder.
        epsilon: The claim to audit, above 0 and at most 2, which is taken without one; noise is calibrated to it,
            whatever the run's own is.
        told: Hears what is done next.

    Raises:
        ReportError: The folder holds no run that can be audited.
        PrivacyError: The claim cannot be audited, or what is released is not noised at all.
    """
    claim = checked_claim(MAX_EPSILON if epsilon is None else epsilon)
    audited = open_run(run, CANARIES)
    scenario, train = audited.stage.scenario, audited.stage.data.sites[0].train
    bench = audited.bench(train.select(range(min(len(train), _MAX_RECORDS))))
    private, noise = scenario.privacy, GaussianNoise()
    mechanism = audited_mechanism(claim, private.clipping_norm, unit_of(scenario), private.records_per_unit)
    told("gradient canaries")
    found, left_out = [gradient_canaries(bench, mechanism, noise)], []
    told("record canaries")
    try:
        found.append(record_canaries(bench, mechanism, noise))
    except DoesNotFit as exc:
        left_out.append(str(exc))
    told("trials")
    audit = CanaryAudit(
        **audited.stamp(),
        left_out=tuple(left_out),
        canaries=tuple(CanaryFigures(**asdict(result)) for result in found),
        trials=tuple(Trial(**asdict(result)) for result in run_trials(bench, mechanism, noise)),
    )
    audit.write(run / AUDIT / CANARIES)
    return audit
