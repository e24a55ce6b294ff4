import hashlib
import subprocess
import sys
import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import PLAN, WITHOUT_NOISE, change_plan, with_mechanism, with_metrics

from fedglm.privacy.errors import PolicyError, Refusal
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy, sign_policy
from fedglm.privacy.policy.rules import (
    MESSAGE_RULES,
    PLAN_RULES,
    OutboundMessage,
    check_message,
    check_plan,
    find_broken_rules,
)
from fedglm.privacy.policy.run_plan import SignedPlan

SITE, SERVER, STRANGER = SigningKey.generate(), SigningKey.generate(), SigningKey.generate()
MESSAGE = OutboundMessage(size=10_000, metrics=frozenset({"loss"}), validation=True)
PERMITS = {
    "epsilon": 8.0,
    "delta": 1e-6,
    "declare_units": 2000,
    "unit": "patient_id",
    "records_per_unit_at_most": 4,
    "noise_multiplier_at_least": 1.0,
    "clipping_norm_at_most": 1.0,
    "steps_at_most": 10,
    "without_differential_privacy": True,
    "servers": [SERVER.public.hex],
    "plans": ["*"],
    "models": ["b" * 64],
    "codecs": ["int8", "topk-sign"],
    "bytes_at_most": 10_000,
    "metrics": ["loss"],
    "light_validation": True,
}
"""What PLAN and MESSAGE need, and no more."""


def permitting(**change):
    return Policy.model_validate({"data_set": "notes", **PERMITS, **change})


def broken(policy, plan=PLAN, message=MESSAGE, key=SERVER):
    signed = SignedPlan.sign(plan, key)
    return [
        *(rule.name for rule, _ in find_broken_rules(PLAN_RULES, signed, policy)),
        *(rule.name for rule, _ in find_broken_rules(MESSAGE_RULES, message, policy)),
    ]


BREAKING = {
    # rule: changes of the plan, of the policy, key that signs
    "servers": ({}, {}, STRANGER),
    "plans": ({"rounds": 21}, {"plans": [PLAN.sha256]}, SERVER),
    "models": ({"model": "c" * 64}, {}, SERVER),
    "codecs": ({"codec": "dense-fp32"}, {}, SERVER),
    "steps": (with_mechanism(steps=11), {}, SERVER),
    "without-differential-privacy": (WITHOUT_NOISE, {"without_differential_privacy": False}, SERVER),
    "unit": (with_mechanism(unit="record"), {}, SERVER),
    "records-per-unit": (with_mechanism(records_per_unit=5), {}, SERVER),
    "noise-multiplier": (with_mechanism(noise_multiplier=0.999), {}, SERVER),
    "clipping-norm": (with_mechanism(clipping_norm=1.001), {}, SERVER),
    "declare-units": ({}, {"declare_units": None}, SERVER),
    "delta": ({}, {"delta": None}, SERVER),
    "epsilon-budget": ({}, {"epsilon": 0.01}, SERVER),
}
BREAKING_MESSAGES = {
    # rule: message, changes of the policy
    "bytes": (OutboundMessage(size=10_001), {}),
    "metrics": (OutboundMessage(size=1, metrics=frozenset({"loss", "count"})), {}),
    "light-validation": (OutboundMessage(size=1, validation=True), {"light_validation": False}),
}


def test_what_is_permitted_in_full_is_not_refused():
    assert broken(permitting()) == []
    check_plan(SignedPlan.sign(PLAN, SERVER), permitting())
    check_message(MESSAGE, permitting())


NO_RULES = {"data_set", "retention_days", "state_encrypted"}
"""Keys that no plan or message is held to: the gate holds the node itself to the last, and reports show the others."""


def test_every_rule_has_a_case_and_every_key_a_rule():
    rules = [*PLAN_RULES, *MESSAGE_RULES]
    assert [rule.name for rule in PLAN_RULES] == list(BREAKING)
    assert [rule.name for rule in MESSAGE_RULES] == list(BREAKING_MESSAGES)
    assert sorted(rule.key for rule in rules) == sorted(Policy.model_fields.keys() - NO_RULES)
    assert len({rule.name for rule in rules}) == len({rule.meaning for rule in rules}) == len(rules)
    assert all(rule.meaning.endswith(".") and rule.meaning.count(". ") == 0 for rule in rules)


@pytest.mark.parametrize("name", BREAKING)
def test_a_plan_that_breaks_a_rule_is_refused_in_its_name(name):
    plan, policy, key = BREAKING[name]
    assert broken(permitting(**policy), change_plan(PLAN, **plan), key=key) == [name]
    with pytest.raises(Refusal, match=f"refused by rule {name}: ") as caught:
        check_plan(SignedPlan.sign(change_plan(PLAN, **plan), key), permitting(**policy))
    assert caught.value.rule == name


@pytest.mark.parametrize("name", BREAKING_MESSAGES)
def test_a_message_that_breaks_a_rule_is_refused_in_its_name(name):
    message, change = BREAKING_MESSAGES[name]
    with pytest.raises(Refusal, match=f"refused by rule {name}: ") as caught:
        check_message(message, permitting(**change))
    assert caught.value.rule == name


@pytest.mark.parametrize("key", PERMITS)
def test_a_permission_that_is_left_out_denies(key):
    policy = Policy.model_validate({"data_set": "notes", **{k: v for k, v in PERMITS.items() if k != key}})
    plan = change_plan(PLAN, **WITHOUT_NOISE) if key == "without_differential_privacy" else PLAN
    rule = next(rule.name for rule in (*PLAN_RULES, *MESSAGE_RULES) if rule.key == key)
    assert broken(policy, plan) == [rule]


def test_an_empty_policy_breaks_every_rule_of_a_private_run():
    everything = {rule.name for rule in (*PLAN_RULES, *MESSAGE_RULES)}
    assert set(broken(Policy(data_set="notes"))) == everything - {"without-differential-privacy"}
    assert "without-differential-privacy" in broken(Policy(data_set="notes"), change_plan(PLAN, **WITHOUT_NOISE))


def test_permission_to_add_no_noise_loosens_nothing_for_a_plan_that_adds_some():
    weak = change_plan(PLAN, **with_mechanism(noise_multiplier=0.5))
    assert broken(permitting(without_differential_privacy=True), weak) == ["noise-multiplier"]


def test_noise_on_measures_is_held_to_the_rules_of_noise_and_counts():
    quiet = change_plan(PLAN, **with_metrics(noise_multiplier=0.9))
    assert broken(permitting(), quiet) == ["noise-multiplier"]
    measured = change_plan(PLAN, **with_metrics(noise_multiplier=1.0))
    assert broken(permitting(epsilon=2.0)) == []
    assert broken(permitting(epsilon=2.0), measured) == ["epsilon-budget"]


def test_a_star_alone_allows_all_and_nothing_else_is_a_wildcard():
    open_to_all = permitting(servers=["*"], plans=["*"], models=["*"], codecs=["*"])
    assert broken(open_to_all, change_plan(PLAN, model="d" * 64, codec="new"), key=STRANGER) == []
    for key in ("servers", "plans", "models", "codecs"):
        for entries in (["*", "a" * 64], ["a*"], ["**"], [""], ["A" * 64], ["a" * 64 + "\n"], "*", [1], None):
            with pytest.raises(ValueError, match=key):
                permitting(**{key: entries})


def test_a_model_is_allowed_by_its_weights_or_by_its_layout():
    assert broken(permitting(models=[PLAN.layout])) == broken(permitting(models=[PLAN.model])) == []
    assert broken(permitting(models=["c" * 64])) == ["models"]


@pytest.fixture
def signed(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text(permitting().to_toml(), encoding="utf-8")
    sign_policy(path, SITE)
    return path


def refused(path, match, key=SITE):
    with pytest.raises(PolicyError, match=match):
        load_policy(path, key.public)


def test_a_signed_policy_is_read_and_hashes_like_its_file(signed):
    policy = load_policy(signed, SITE.public)
    assert policy == permitting()
    assert policy.sha256 == permitting().sha256 == hashlib.sha256(signed.read_bytes()).hexdigest()
    text = "# agreed on Monday\n" + signed.read_text()
    signed.write_text(text)
    assert sign_policy(signed, SITE).sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert load_policy(signed, SITE.public).sha256 == hashlib.sha256(text.encode()).hexdigest() != policy.sha256


@pytest.mark.parametrize("suffix", ["", ".sig"])
def test_every_flipped_byte_of_policy_or_signature_is_refused(signed, suffix):
    path = signed.with_name(signed.name + suffix)
    whole = path.read_bytes()
    for place in range(0, len(whole), 1 if suffix else 13):
        mask = (0x01, 0x20, 0x80)[place % 3]  # 0x20 makes a capital of a letter
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        refused(signed, "does not carry the signature")
    path.write_bytes(whole)
    load_policy(signed, SITE.public)


@pytest.mark.parametrize("suffix", ["", ".sig"])
def test_truncated_lengthened_and_missing_files_are_refused(signed, suffix):
    path = signed.with_name(signed.name + suffix)
    whole = path.read_bytes()
    for content in (b"", whole[:-1], whole[: len(whole) // 2], whole + b"\n", b"\n" + whole, whole * 2):
        path.write_bytes(content)
        refused(signed, "does not carry the signature")
    path.write_bytes(bytes(1 << 20))
    refused(signed, "longer than 65536 bytes")
    path.unlink()
    refused(signed, "without a policy nothing leaves" if not suffix else "sign the policy with the site's key")


def test_a_policy_signed_by_another_key_is_refused_and_the_right_key_named(signed):
    sign_policy(signed, STRANGER)
    refused(signed, SITE.public.fingerprint())
    load_policy(signed, STRANGER.public)


def test_a_signature_under_something_else_is_refused(signed):
    signature = SITE.sign("fedglm/plan/1", signed.read_bytes())
    signed.with_name("policy.toml.sig").write_text(signature.hex() + "\n")
    refused(signed, "does not carry the signature")


def test_what_is_no_policy_is_not_signed(tmp_path):
    path = tmp_path / "policy.toml"
    path.write_text('data_set = "notes"\nepsilon = -1')
    with pytest.raises(PolicyError, match=r"policy.toml: epsilon = '-1': input should be greater than 0"):
        sign_policy(path, SITE)
    with pytest.raises(PolicyError, match="cannot read"):
        sign_policy(tmp_path / "none.toml", SITE)
    path.write_bytes(b'data_set = "\xff"')
    with pytest.raises(PolicyError, match="not UTF-8"):
        sign_policy(path, SITE)
    assert [entry.name for entry in tmp_path.iterdir()] == ["policy.toml"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "data_set is missing"),
        ("data_set = ", "is not TOML"),
        ("data_set = " + "[" * 60_000, "is not TOML"),
        ('data_set = "a"\nsteps_at_most = ' + "9" * 5_000, "is not TOML"),
        ('data_set = "a"\nsteps_at_most = 0x' + "f" * 5_000, "steps_at_most = '0xfff"),
        ('data_set = "a"\nepsilon = 0x' + "f" * 5_000, "epsilon = '0xfff"),
        ('data_set = "a"\nepsilom = 8.0', "unknown key epsilom: did you mean epsilon"),
        ('data_set = "a"\nmax_steps = 3', "unknown key max_steps: did you mean "),
        ('data_set = "a"\n[budget]\nepsilon = 8.0', "unknown key budget"),
        ('data_set = "a"\nepsilon = inf', "epsilon = 'inf': input should be a finite number"),
        ('data_set = "a"\nepsilon = nan', "epsilon"),
        ('data_set = "a"\nepsilon = "8"', "epsilon"),
        ('data_set = "a"\nepsilon = true', "epsilon"),
        ('data_set = "a"\ndelta = 0.0', "delta"),
        ('data_set = "a"\ndelta = 0.2', "delta"),
        ('data_set = "a"\ndelta = 1e-3\ndeclare_units = 1000', "one unit's records in full: give at most 0.0001"),
        ('data_set = "a"\nsteps_at_most = 2.5', "steps_at_most"),
        ('data_set = "a"\nsteps_at_most = 0', "steps_at_most"),
        ('data_set = "a"\nwithout_differential_privacy = "yes"', "without_differential_privacy"),
        ('data_set = "a"\nwithout_differential_privacy = 1', "without_differential_privacy"),
        ('data_set = "a"\nmetrics = ["accuracy"]', "metrics.0 = 'accuracy'"),
        ('data_set = "a"\nmetrics = ["*"]', "metrics"),
        ('data_set = ""', "data_set"),
    ],
)
def test_an_unclear_policy_is_refused_with_the_key_and_the_remedy(text, says):
    with pytest.raises(PolicyError) as caught:
        Policy.from_toml(text)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_the_file_explains_every_key_and_fits_a_screen():
    for policy in (permitting(), Policy(data_set="notes")):
        lines = policy.to_toml().splitlines()
        assert max(map(len, lines)) <= 100
        said = " ".join(line.removeprefix("# ") for line in lines if line.startswith("# "))
        for name, field in Policy.model_fields.items():
            assert field.description in said
            place = next(n for n, line in enumerate(lines) if line.lstrip("#").startswith(f"{name} = "))
            assert lines[place - 1].startswith("# ")


def test_the_examples_of_what_is_not_given_are_valid():
    bare = Policy(data_set="notes").to_toml()
    assert tomllib.loads(bare) == {
        "data_set": "notes",
        "without_differential_privacy": False,
        "light_validation": False,
        "state_encrypted": False,
    }
    lines = [line.removeprefix("#") if not line.startswith("# ") else line for line in bare.splitlines()]
    example = Policy.from_toml("\n".join(lines))
    assert None not in example.model_dump().values()
    assert () not in example.model_dump().values()


limits = st.none() | st.integers(1, 2**53)
positives = st.none() | st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
hashes = st.just(["*"]) | st.lists(st.text("0123456789abcdef", min_size=64, max_size=64), max_size=3)
printable = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
policies = st.fixed_dictionaries(
    {"data_set": printable},
    optional={
        "epsilon": positives,
        "delta": st.none() | st.floats(1e-10, 0.1),
        "unit": st.none() | printable,
        "records_per_unit_at_most": limits,
        "noise_multiplier_at_least": positives,
        "clipping_norm_at_most": positives,
        "steps_at_most": limits,
        "bytes_at_most": limits,
        "without_differential_privacy": st.booleans(),
        "servers": hashes,
        "plans": hashes,
        "models": hashes,
        "codecs": st.just(["*"]) | st.lists(st.sampled_from(["int8", "topk-sign"]), max_size=2),
        "metrics": st.lists(st.sampled_from(["loss", "metric", "count"]), max_size=3),
    },
).map(Policy.model_validate)


@given(policies)
def test_a_policy_is_read_back_from_its_own_file(policy):
    again = Policy.from_toml(policy.to_toml())
    assert again == policy
    assert again.sha256 == policy.sha256


def test_policies_load_without_torch():
    code = """
import sys
import fedglm.privacy.policy.rules, fedglm.privacy.custody.refusal_log
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "opacus", "transformers", "flwr"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
