from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedglm.autoglm.light.distillation.schedules import WSD_DECAY, Ramp, rate_factor, value_at
from fedglm.autoglm.light.distillation.settings import DistillationSettings, Stage

DECAYS = st.sampled_from(["cosine", "wsd", "constant"])


@given(decay=DECAYS, steps=st.integers(1, 300), warmup=st.integers(0, 100))
def test_the_rate_rises_to_its_peak_and_never_again(decay, steps, warmup):
    rates = [rate_factor(decay, step, steps, warmup) for step in range(1, steps + 1)]
    assert all(0 < rate <= 1 for rate in rates)
    rising, falling = rates[: min(warmup, steps)], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if decay != "wsd" and warmup < steps:
        assert rates[warmup] == 1


def test_wsd_stays_for_four_fifths_and_falls_to_almost_nothing():
    rates = [rate_factor("wsd", step, 100, 10) for step in range(1, 101)]
    assert rates[10 : round(100 * (1 - WSD_DECAY)) + 1] == [1.0] * 71
    assert rates[-1] == pytest.approx(1 / 20)
    assert [rate_factor("constant", step, 100, 0) for step in (1, 50, 100)] == [1, 1, 1]
    assert rate_factor("cosine", 56, 100, 10) == pytest.approx(0.5)


@given(start=st.floats(0, 100), end=st.floats(0, 100), shape=st.sampled_from(["linear", "cosine"]))
def test_a_ramp_runs_from_one_end_to_the_other(start, end, shape):
    ramp = Ramp(start=start, end=end, shape=shape)
    values = [ramp.at(part / 20) for part in range(21)]
    assert values[0] == start
    assert values[-1] == pytest.approx(end, abs=1e-9)
    assert ramp.at(0.5) == pytest.approx((start + end) / 2)
    slack = 1e-9 * max(start, end)
    assert all((b - a) * (1 if end > start else -1) >= -slack for a, b in pairwise(values))
    assert value_at(2.5, 0.3) == 2.5


def test_a_control_differs_by_alpha_alone():
    settings = DistillationSettings(
        stages=(Stage(steps=3, alpha=Ramp(start=1, end=0.5), temperature=4.0), Stage(steps=2)), batch_size=5
    )
    control = settings.without_teacher()
    assert settings.needs_teacher
    assert not control.needs_teacher
    assert control.steps == settings.steps == 5
    changed = control.model_copy(update={"stages": settings.stages})
    assert changed == settings
    assert DistillationSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "fields",
    [
        {"alpha": 1.1},
        {"alpha": {"start": 0.5, "end": 1.5}},
        {"temperature": 0},
        {"temperature": {"start": 3, "end": 0}},
        {"temprature": 3},
        {"steps": 0},
    ],
)
def test_what_makes_no_sense_is_refused(fields):
    with pytest.raises(ValidationError):
        Stage.model_validate(fields)
