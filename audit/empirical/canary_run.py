"""The canary audit of a run: its model, records and clipping, in a training of the audit's own."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

from fedglm.audit.empirical.audited_run import open_run
from fedglm.audit.empirical.canaries import (
    MAX_EPSILON,
    check_claim,
    make_audited_mechanism,
    run_gradient_canaries,
    run_record_canaries,
)
from fedglm.audit.empirical.probe import DoesNotFit
from fedglm.audit.empirical.results import CANARIES, CanaryAudit, CanaryFigures, Trial
from fedglm.audit.empirical.trials import run_trials
from fedglm.privacy.dp.noise import GaussianNoise
from fedglm.run_folder.names import AUDIT
from fedglm.scenarios.noise_plan import unit_of

_MAX_RECORDS: Final = 64


def audit_canaries(
    run: Path, epsilon: float | None = None, on_progress: Callable[[str], None] = lambda _: None
) -> CanaryAudit:
    """Audit the training that a run's nodes do, and write the result into the run's folder.

    Args:
        run: Folder of the run.
        epsilon: Claim to audit, above 0 and at most 2; 2 without it. Noise is calibrated to it, whatever the run's own
            epsilon is.
        on_progress: Callback for the name of the next part.

    Raises:
        ReportError: The folder holds no run that can be audited.
        PrivacyError: The claim cannot be audited, or the released update has no noise at all.
    """
    claim = check_claim(MAX_EPSILON if epsilon is None else epsilon)
    audited = open_run(run, CANARIES)
    scenario, records = audited.built.scenario, audited.built.data.sites[0].train
    probe = audited.make_probe(records.select(range(min(len(records), _MAX_RECORDS))))
    private, noise = scenario.privacy, GaussianNoise()
    mechanism = make_audited_mechanism(claim, private.clipping_norm, unit_of(scenario), private.records_per_unit)
    on_progress("gradient canaries")
    results, left_out = [run_gradient_canaries(probe, mechanism, noise)], []
    on_progress("record canaries")
    try:
        results.append(run_record_canaries(probe, mechanism, noise))
    except DoesNotFit as exc:
        left_out.append(str(exc))
    on_progress("trials")
    audit = CanaryAudit(
        **audited.make_header(),
        left_out=tuple(left_out),
        canaries=tuple(CanaryFigures(**asdict(result)) for result in results),
        trials=tuple(
            Trial(name=trial.name, outcome=trial.outcome, said=trial.detail)
            for trial in run_trials(probe, mechanism, noise)
        ),
    )
    audit.write(run / AUDIT / CANARIES)
    return audit
