import json
import math
import pickle
from dataclasses import FrozenInstanceError, replace

import pytest

from fedglm.privacy.dp.mechanism import Event, Mechanism
from fedglm.privacy.errors import LedgerError, PolicyError, PrivacyError, Refusal

FIELDS = {
    "sampling_rate": 0.02,
    "steps": 5,
    "clipping_norm": 0.5,
    "noise_multiplier": 1.2,
    "unit": "patient_id",
    "records_per_unit": 4,
}


def test_noise_and_event_come_from_the_same_fields():
    mechanism = Mechanism(**FIELDS)
    assert mechanism.noise_std == 0.6
    assert mechanism.event() == Event(noise_multiplier=1.2, sampling_rate=0.02, steps=5)
    doubled = replace(mechanism, clipping_norm=1.0)
    assert doubled.noise_std == 1.2
    assert doubled.event() == mechanism.event()
    with pytest.raises(FrozenInstanceError):
        mechanism.noise_multiplier = 0.1


def test_no_field_has_a_default():
    for name in FIELDS:
        with pytest.raises(TypeError, match=name):
            Mechanism(**{key: value for key, value in FIELDS.items() if key != name})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("sampling_rate", "clipping_norm", "noise_multiplier") for value in (0.0, -1.0)),
        *((name, math.nan) for name in ("sampling_rate", "clipping_norm", "noise_multiplier")),
        *((name, math.inf) for name in ("sampling_rate", "clipping_norm", "noise_multiplier")),
        *((name, value) for name in ("sampling_rate", "noise_multiplier") for value in ("1", None, True, 1)),
        ("sampling_rate", 1.0000001),
        *((name, value) for name in ("steps", "records_per_unit") for value in (0, -1, 1.0, True, "1", None, 10**8)),
        *(("unit", value) for value in ("", 3, None, "a\nb", "x" * 101)),
    ],
)
def test_a_field_out_of_bounds_is_named(name, value):
    with pytest.raises(PrivacyError, match=name):
        Mechanism(**{**FIELDS, name: value})


@pytest.mark.parametrize("values", [(1e-200, 1e-200), (1e200, 1e200)])
def test_noise_that_no_float_holds_is_refused(values):
    with pytest.raises(PrivacyError, match="clipping_norm times noise_multiplier"):
        Mechanism(**{**FIELDS, "clipping_norm": values[0], "noise_multiplier": values[1]})


@pytest.mark.parametrize("arguments", [(0.0, 0.1, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 0.1, 0), (1, 0.1, 1)])
def test_an_event_has_the_same_bounds(arguments):
    with pytest.raises(PrivacyError):
        Event(*arguments)


def test_fields_survive_json():
    mechanism = Mechanism(**FIELDS)
    fields = mechanism.to_fields()
    assert fields == FIELDS
    assert Mechanism.from_fields(json.loads(json.dumps(fields))) == mechanism


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda fields: fields.pop("unit"), "unit"),
        (lambda fields: fields.update(extra=1), "extra"),
        (lambda fields: fields.update({3: 1}), "3"),
        (lambda fields: fields.update(steps=5.0), "steps"),
        (lambda fields: fields.update(clipping_norm=[1.0]), "clipping_norm"),
    ],
)
def test_a_stranger_s_fields_are_read_strictly(change, named):
    fields = dict(FIELDS)
    change(fields)
    with pytest.raises(PrivacyError, match=named):
        Mechanism.from_fields(fields)


def test_a_refusal_names_its_rule_also_after_a_journey_between_processes():
    refusal = pickle.loads(pickle.dumps(Refusal("unit", "another unit")))  # noqa: S301 - our own bytes
    assert (refusal.rule, refusal.reason) == ("unit", "another unit")
    assert str(refusal) == "refused by rule unit: another unit"


def test_one_base_for_all_errors():
    for kind in (LedgerError, PolicyError, Refusal):
        assert issubclass(kind, PrivacyError)
    assert issubclass(PrivacyError, RuntimeError)
