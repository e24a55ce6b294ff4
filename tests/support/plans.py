"""One run plan with noise, and a plan without: what tests of plans and of policies start from."""

from dataclasses import replace

from fedglm.privacy.dp.mechanism import Mechanism, metrics_mechanism
from fedglm.privacy.policy.run_plan import RunPlan

MECHANISM = Mechanism(
    sampling_rate=0.02, steps=10, clipping_norm=1.0, noise_multiplier=1.0, unit="patient_id", records_per_unit=4
)
PLAN = RunPlan(
    run="run-1",
    rounds=20,
    turns=20,
    local_steps=10,
    mechanism=MECHANISM,
    noise_at_most=2.0,
    metrics=None,
    codec="topk-sign",
    density=0.01,
    parameters=1000,
    layout="a" * 64,
    model="b" * 64,
    recipe="",
    code="c" * 64,
)
WITHOUT_NOISE = {"mechanism": None, "noise_at_most": None, "metrics": None}
"""Changes that make of a plan with noise one without."""


def with_mechanism(**change):
    """Changes of a plan that change its mechanism, and what must agree with it."""
    made = replace(MECHANISM, **change)
    return {"mechanism": made, "local_steps": made.steps, "noise_at_most": 2 * made.noise_multiplier}


def with_metrics(noise_multiplier=20.0):
    """Changes of a plan by which nodes report noised measures."""
    return {"metrics": metrics_mechanism(MECHANISM, noise_multiplier)}
