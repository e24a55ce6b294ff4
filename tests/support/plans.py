"""One run plan with noise, and a plan without: what tests of plans and of policies start from."""

from dataclasses import replace

from fedglm.privacy.dp.mechanism import Mechanism, make_metrics_mechanism
from fedglm.privacy.policy.run_plan import RunPlan
from fedglm.privacy.policy.run_spec import NoisePlan, RunSpec

_NOISE = {
    "turns": "max_participations",
    "mechanism": "mechanism",
    "noise_at_most": "max_noise_multiplier",
    "metrics": "metrics",
}
_SPEC = ("rounds", "local_steps", "codec", "density", "recipe")
SPEC_FIELDS = frozenset((*_NOISE, *_SPEC))


def make_spec(**fields):
    """A run's definition from the names that its fields have in a plan, on one level."""
    noise = {own: fields.pop(name) for name, own in _NOISE.items() if name in fields}
    return RunSpec(noise=NoisePlan(**noise), **fields)


def make_plan(**fields):
    """A plan, the same way."""
    spec = {name: fields.pop(name) for name in SPEC_FIELDS & fields.keys()}
    return RunPlan(spec=make_spec(**spec), **fields)


def change_spec(spec, **changes):
    """The definition with some of these fields changed."""
    noise = {_NOISE[name]: changes.pop(name) for name in _NOISE.keys() & changes.keys()}
    return replace(spec, noise=replace(spec.noise, **noise), **changes)


def change_plan(plan, **changes):
    """The plan with some of these fields changed."""
    spec = {name: changes.pop(name) for name in SPEC_FIELDS & changes.keys()}
    return replace(plan, spec=change_spec(plan.spec, **spec), **changes)


MECHANISM = Mechanism(
    sampling_rate=0.02, steps=10, clipping_norm=1.0, noise_multiplier=1.0, unit="patient_id", records_per_unit=4
)
PLAN = make_plan(
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
    return {"metrics": make_metrics_mechanism(MECHANISM, noise_multiplier)}
