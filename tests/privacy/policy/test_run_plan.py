import hashlib
import json
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import MECHANISM, PLAN, SPEC_FIELDS, WITHOUT_NOISE, change_plan, make_plan, with_metrics

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.privacy.dp.mechanism import Mechanism, make_metrics_mechanism
from fedglm.privacy.errors import PrivacyError, Refusal
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.run_plan import MAX_BYTES, RunPlan, SignedPlan

KEY = SigningKey.generate()

names = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=50)
steps = st.integers(1, 10_000)
digests = st.binary(max_size=8).map(lambda data: hashlib.sha256(data).hexdigest())


@st.composite
def plans(draw):
    count, rounds = draw(steps), draw(st.integers(1, 2**31 - 1))
    drawn = st.builds(
        Mechanism,
        sampling_rate=st.floats(1e-6, 1),
        steps=st.just(count),
        clipping_norm=st.floats(1e-6, 1e6),
        noise_multiplier=st.floats(1e-3, 1e3),
        unit=st.sampled_from(["record", "patient_id", "größe"]),
        records_per_unit=st.integers(1, 1000),
    )
    mechanism = draw(st.none() | drawn)
    noised = {"noise_at_most": None, "metrics": None}
    if mechanism is not None:
        metrics = st.floats(1e-3, 1e3).map(lambda noise: make_metrics_mechanism(mechanism, noise))
        noised = {
            "noise_at_most": draw(st.floats(mechanism.noise_multiplier, 1e6)),
            "metrics": draw(st.none() | metrics),
        }
    return make_plan(
        run=draw(names),
        rounds=rounds,
        turns=draw(st.integers(1, rounds)),
        local_steps=count,
        mechanism=mechanism,
        **noised,
        codec=draw(names),
        density=draw(st.none() | st.floats(0, 1, exclude_min=True)),
        parameters=draw(st.integers(1, 2**31 - 1)),
        layout=draw(digests),
        model=draw(digests),
        recipe=draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=100)),
        code=draw(digests),
    )


def signed_body(body, key=KEY):
    """A blob whose signature is right, whatever the body."""
    return key.public.raw + key.sign("fedglm/plan/1", body) + body


def refused(blob, rule):
    with pytest.raises(Refusal, match=f"refused by rule {rule}: ") as caught:
        SignedPlan.from_bytes(blob)
    assert caught.value.rule == rule
    return str(caught.value)


@given(plans())
def test_a_plan_survives_the_journey_and_keeps_its_hash(plan):
    blob = plan.to_bytes()
    assert RunPlan.from_bytes(blob) == plan
    assert RunPlan.from_bytes(blob).to_bytes() == blob
    assert plan.sha256 == hashlib.sha256(blob).hexdigest()
    signed = SignedPlan.from_bytes(SignedPlan.sign(plan, KEY).to_bytes())
    assert (signed.plan, signed.server) == (plan, KEY.public)


@given(plans(), plans())
def test_plans_have_one_hash_exactly_when_they_are_equal(first, second):
    assert (first.sha256 == second.sha256) == (first == second)


def test_the_bytes_are_sorted_json_without_spaces():
    text = PLAN.to_bytes().decode()
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    own = {"run", "parameters", "layout", "model", "code"}
    assert json.loads(text).keys() == own | SPEC_FIELDS, "plans of earlier runs must be read, and hash as they did"
    bare = change_plan(PLAN, **WITHOUT_NOISE).to_bytes().decode()
    assert all(f'"{name}":null' in bare for name in WITHOUT_NOISE)


@pytest.mark.parametrize(
    "change",
    [
        {"run": ""},
        {"run": "x" * 201},
        {"run": "two\nlines"},
        {"run": 7},
        {"codec": ""},
        {"rounds": 0},
        {"rounds": 2**31},
        {"rounds": True},
        {"rounds": 2.0},
        {"turns": 0},
        {"turns": 21},
        {"turns": 20.0},
        {"local_steps": 0, **WITHOUT_NOISE},
        {"local_steps": 11},
        {"density": 0.0},
        {"density": 1.5},
        {"density": float("nan")},
        {"density": 1},
        {"layout": "a" * 63},
        {"layout": "A" * 64},
        {"model": "b" * 64 + "\n"},
        {"model": None},
        {"code": "c" * 63},
        {"parameters": 0},
        {"parameters": 1.0},
        {"recipe": "x" * 20_001},
        {"recipe": None},
        {"mechanism": {"steps": 10}},
        {"metrics": {"steps": 1}},
        {"mechanism": None},
        {"mechanism": None, "noise_at_most": None, **with_metrics()},
        {"noise_at_most": None},
        {"noise_at_most": 0.999},
        {"noise_at_most": 2},
        {"noise_at_most": float("inf")},
        {"noise_at_most": float("nan")},
        {"metrics": MECHANISM},
        {"metrics": replace(with_metrics()["metrics"], sampling_rate=0.5)},
        {"metrics": replace(with_metrics()["metrics"], steps=2)},
        {"metrics": replace(with_metrics()["metrics"], unit="record")},
        {"metrics": replace(with_metrics()["metrics"], records_per_unit=5)},
    ],
    ids=str,
)
def test_a_field_out_of_bounds_is_refused_and_named(change):
    with pytest.raises(PrivacyError, match=f"run plan: .*({'|'.join(change)}|local steps)"):
        change_plan(PLAN, **change)


def changed(**change):
    return canonical_json({**json.loads(PLAN.to_bytes()), **change})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"plan"',
        b"{}",
        b"\xff\xfe",
        PLAN.to_bytes()[:-1],
        PLAN.to_bytes() + b" ",
        PLAN.to_bytes() + b"\n",
        b" " + PLAN.to_bytes(),
        json.dumps(json.loads(PLAN.to_bytes())).encode(),
        PLAN.to_bytes().replace(b'"rounds":20', b'"rounds":20,"rounds":20'),
        PLAN.to_bytes().replace(b'"rounds":20', b'"rounds":2e1'),
        PLAN.to_bytes().replace(b'"density":0.01', b'"density":1e-2'),
        PLAN.to_bytes().replace(b'"density":0.01', b'"density":NaN'),
        PLAN.to_bytes().replace(b'"density":0.01', b'"density":1e999'),
        PLAN.to_bytes().replace(b'"run-1"', b'"\\ud800"'),
        PLAN.to_bytes().replace(b'"run-1"', b'"run\\u002d1"'),
        changed(more=1),
        changed(mechanism=3),
        changed(mechanism={}),
        changed(mechanism={**MECHANISM.to_fields(), "more": 1}),
        changed(mechanism={**MECHANISM.to_fields(), "noise_multiplier": 0.0}),
        changed(mechanism={**MECHANISM.to_fields(), "noise_multiplier": "1.0"}),
        changed(metrics=3),
        changed(metrics=MECHANISM.to_fields()),
        changed(local_steps=9),
        canonical_json({k: v for k, v in json.loads(PLAN.to_bytes()).items() if k != "mechanism"}),
    ],
)
def test_a_body_that_is_no_plan_is_refused_though_signed(body):
    with pytest.raises(PrivacyError):
        RunPlan.from_bytes(body)
    refused(signed_body(body), "plan-form" if body else "plan-size")


def test_every_flipped_byte_of_a_signed_plan_is_refused():
    blob = SignedPlan.sign(PLAN, KEY).to_bytes()
    assert SignedPlan.from_bytes(blob).plan == PLAN
    for place in range(len(blob)):
        for mask in (0x01, 0x20, 0x80):
            damaged = bytearray(blob)
            damaged[place] ^= mask
            refused(bytes(damaged), "plan-signature")


def test_every_truncation_of_a_signed_plan_is_refused():
    blob = SignedPlan.sign(PLAN, KEY).to_bytes()
    for length in range(len(blob)):
        refused(blob[:length], "plan-size" if length <= 96 else "plan-signature")


def test_a_plan_under_another_signature_cannot_be_made():
    other = SigningKey.generate()
    signature = KEY.sign("fedglm/plan/1", PLAN.to_bytes())
    SignedPlan(PLAN, KEY.public, signature)
    for plan, server, under in (
        (change_plan(PLAN, rounds=21), KEY.public, signature),
        (PLAN, other.public, signature),
        (PLAN, KEY.public, KEY.sign("fedglm/policy/1", PLAN.to_bytes())),
        (PLAN, KEY.public, b""),
    ):
        with pytest.raises(Refusal, match="plan-signature"):
            SignedPlan(plan, server, under)


HOSTILE = {
    "lists in lists": b"[" * (MAX_BYTES - 96),
    "closed lists": b"[" * 30_000 + b"]" * 30_000,
    "mappings": b'{"a":' * 13_000,
    "many lists": b"[" + b"[]," * 21_000 + b"[]]",
    "many digits": b"9" * 65_000,
    "a long text": b'"' + b"x" * 65_000 + b'"',
    "many keys": canonical_json({str(key): 0 for key in range(7_000)}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_nested_plan_is_refused_with_little_memory(name):
    blob = signed_body(HOSTILE[name])
    tracemalloc.start()
    refused(blob, "plan-form")
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_huge_plan_is_refused_unread():
    blob = signed_body(b"[" * (32 << 20))
    tracemalloc.start()
    refused(blob, "plan-size")
    with pytest.raises(PrivacyError, match="at most 65536"):
        RunPlan.from_bytes(blob)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


@settings(max_examples=200)
@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_raise_anything_but_a_refusal(body, sign):
    blob = signed_body(body) if sign else body
    with pytest.raises(Refusal):
        SignedPlan.from_bytes(blob)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=10,
)


@given(json_values)
def test_canonical_json_is_read_back_and_is_one_text(value):
    blob = canonical_json(value)
    assert read_canonical_json(blob) == value
    assert canonical_json(read_canonical_json(blob)) == blob


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [-float("inf")]}, "\ud800"])
def test_what_has_no_canonical_json_is_an_error(value):
    with pytest.raises(ValueError, match=r".+"):
        canonical_json(value)
