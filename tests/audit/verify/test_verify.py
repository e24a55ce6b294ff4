"""`fedglm audit verify`: a good run is verified, and every change of its records is detected and named."""

import json
import os
import random
import re
import shutil

import pytest
from audited_run import ROUNDS, SITES, Chain, Mutations, kept_run, make_run, small_nodes
from custodies import MECHANISM, SERVER
from ledgers import tamper
from plans import change_plan

from fedglm.audit.records.checks import select_failed
from fedglm.audit.verify.verification import verify
from fedglm.client import gate
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.custody.site_log import Release
from fedglm.privacy.custody.store import Custody, initialize
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy, sign_policy
from fedglm.privacy.policy.run_plan import SignedPlan

pytestmark = pytest.mark.usefixtures("unsynced")

NAMED = re.compile(r"\b(entry|entries|row|round|rounds)\b.*\d|policy|model|key|beginning|signature|read|signed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run; beside it, in `old`, its folder as it was after the second round."""
    home = tmp_path_factory.mktemp("audited")
    make_run(home / "run")
    return home / "run"


def test_a_run_as_it_was_is_verified(run):
    verification = verify(run)
    assert select_failed(verification.checks) == []
    assert {check.subject for check in verification.checks} == {"server", *SITES}
    open_checks = {(check.subject, check.name) for check in verification.checks if check.passed is None}
    assert open_checks == {("server", "updates")}
    details = {(check.subject, check.name): check.detail for check in verification.checks}
    assert details["a", "ledger"] == f"{ROUNDS} rows, each of which the log shows"
    assert details["a", "releases received"].startswith(f"{ROUNDS} updates are those")
    assert re.search(r"PRV \d+\.\d+, PLD \d+\.\d+", details["a", "epsilon"])


def test_a_site_is_verified_alone_and_against_the_server(run):
    for folder in (run / "nodes" / "a", run / "nodes" / "a" / "custody"):
        alone, against = verify(folder), verify(folder, server=run)
        assert alone.passed
        assert against.passed
        assert "seen by server" not in {check.name for check in alone.checks}
        assert "seen by server" in {check.name for check in against.checks if check.passed}


def test_a_key_that_is_known_from_elsewhere_must_sign(run):
    own = SigningKey.load(run / "nodes" / "a" / "custody" / "site.key").public
    assert verify(run, keys=[own, SERVER.public]).passed
    (wrong,) = select_failed(verify(run, keys=[SigningKey.generate().public]).checks)
    assert "signs none of the logs" in wrong.detail


def test_a_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(PrivacyError, match="holds no log"):
        verify(tmp_path)


def mutations(run, work, count):
    """Return the changes, out of so many, that were not detected, or not named."""
    hands, missed = Mutations(run, work), []
    for seed in range(count):
        done = hands.apply(random.Random(seed))  # noqa: S311 - repeatable on purpose
        try:
            wrong = select_failed(verify(work).checks)
        except PrivacyError as exc:
            wrong = [str(exc)]
            named = True
        else:
            named = any(NAMED.search(check.detail) for check in wrong)
        if not wrong or not named:
            missed.append((seed, done, wrong))
    return missed


def test_whatever_is_changed_is_found_and_named(run, tmp_path):
    """So many changes are of every kind."""
    assert mutations(run, tmp_path / "copy", 30) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_changes_are_found_and_named(run, tmp_path):
    assert mutations(run, tmp_path / "copy", int(os.environ.get("FEDGLM_MUTATIONS", "10000"))) == []


def test_the_hands_change_nothing_where_they_are_idle(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    assert verify(tmp_path / "copy").passed


# --- what no key, or the wrong one, must be enough for


def wrong(folder, **options):
    return {(check.subject, check.name) for check in select_failed(verify(folder, **options).checks)}


def test_a_log_that_somebody_takes_over_with_a_key_of_his_own(copy):
    path = copy / "nodes" / "a" / "custody" / "log.sqlite"
    thief, chain = SigningKey.generate(), Chain(path)
    owner = json.loads(chain.texts[0])["key"]
    entry = {"kind": "key", "key": thief.public.hex, "previous": owner, "vouched": None}
    moment = json.loads(chain.texts[-1])["time"]
    chain.texts.append(canonical_json({**entry, "number": len(chain.texts) + 1, "time": moment}).decode())
    chain.write(chain=True, key=thief)
    assert ("a", "key") in wrong(copy)
    assert ("a", "key") in wrong(path.parent)


def test_a_server_s_log_that_is_made_anew(copy):
    (copy / "audit" / "log.sqlite").unlink()
    SignedLog.create(copy / "audit" / "log.sqlite", SERVER, role="server", name="server")
    (copy / "rounds.jsonl").unlink()
    (copy / "summary.json").unlink()
    assert ("server", "sites") in wrong(copy)


def test_a_site_in_another_s_place_and_one_that_nobody_admitted(copy):
    shutil.rmtree(copy / "nodes" / "b")
    shutil.copytree(copy / "nodes" / "a", copy / "nodes" / "b")
    assert ("a", "log") in wrong(copy)
    shutil.rmtree(copy / "nodes" / "b" / "custody")
    initialize(copy / "nodes" / "b" / "custody", Policy(data_set="z"), name="z")
    (sites,) = [check for check in verify(copy).checks if check.name == "sites"]
    assert (sites.passed, "1 of 3 that took part are not here: b" in sites.detail) == (None, True)


def test_a_server_s_log_of_a_run_that_no_site_knows(copy):
    """The server's own key, another plan: the sites would seem to have taken part in a run of more noise."""
    signed = SignedPlan.from_text(verify(copy).server.rare_entries("announced")[0]["signed"])
    (copy / "audit" / "log.sqlite").unlink()
    (copy / "rounds.jsonl").unlink()
    (copy / "summary.json").unlink()
    other = SignedPlan.sign(change_plan(signed.plan, run="another"), SERVER)
    SignedLog.create(copy / "audit" / "log.sqlite", SERVER, role="server", name="server")
    with SignedLog(copy / "audit" / "log.sqlite", SERVER).writing() as put:
        put("announced", {"run": "another", "plan": other.plan.sha256, "signed": other.to_text()})
        put("begun", {"run": "another", "round": 0})
        for name in "abc":
            put("admitted", {"run": "another", "site": name, "key": None})
        put("finished", {"run": "another", "rounds": 0, "model": "e" * 64})
    assert {("a", "seen by server"), ("b", "seen by server"), ("c", "seen by server")} <= wrong(copy)


def test_one_site_takes_over_no_other_s_log_nor_the_server_s(copy):
    keys = {name: SigningKey.load(copy / "nodes" / name / "custody" / "site.key") for name in "ab"}
    for path, by in (("nodes/a/custody", keys["b"]), ("audit", keys["a"])):
        log = SignedLog(copy / path / "log.sqlite", by)
        log.append("key", {"key": by.public.hex, "previous": log.key.hex, "vouched": None})
    assert {("a", "key"), ("server", "key")} <= wrong(copy)
    assert ("server", "key") in wrong(copy, keys=[keys["a"].public])


def test_a_plan_that_the_policy_does_not_permit_is_named(tmp_path, monkeypatch):
    """The site's own software let it pass."""
    monkeypatch.setattr(gate, "check_plan", lambda *_: None)
    policies = {"a": {"codecs": ()}, "b": {"steps_at_most": 1}, "c": {"servers": ()}}
    kept_run(tmp_path, small_nodes(tmp_path / "nodes", **policies), rounds=1)
    found = select_failed(verify(tmp_path).checks)
    assert [check.subject for check in found] == ["a", "b", "c"]
    for check, rule in zip(found, ("codecs", "steps", "servers"), strict=True):
        assert f"breaks the policy's rule {rule}" in check.detail


def test_a_budget_that_was_raised_later_hides_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Custody, "_budget", lambda *_: None)
    run = make_run(tmp_path / "run", epsilon=2.2)
    assert ("a", "epsilon") in wrong(run)
    folder = run / "nodes" / "a" / "custody"
    key = SigningKey.load(folder / "site.key")
    later = load_policy(folder / "policy.toml", key.public).model_copy(update={"epsilon": 50.0})
    (folder / "policy.toml").write_text(later.to_toml())
    sign_policy(folder / "policy.toml", key)
    site = Custody.open(folder, lambda: [[b"one"], [b"two"]], unit="record")
    plan = next(iter(site.ledger.rows())).charge.plan
    charge = site.make_charge(
        site.ledger.rows()[-1].charge.run, 3, MECHANISM, plan, "f" * 64, purpose="update", attempt="f" * 32
    )
    site.charge(Release(charge, 100, 1, "topk-fp16", ["size"]))
    (check,) = [check for check in select_failed(verify(run).checks) if (check.subject, check.name) == ("a", "epsilon")]
    assert "more was spent than the policy permits that was in force" in check.detail


def test_rounds_of_other_numbers_are_no_rounds(copy):
    rows = [json.loads(line) for line in (copy / "rounds.jsonl").read_text().splitlines()]
    for change in ([{**row, "round": row["round"] + 100, "uplink_bytes": 7} for row in rows], [*rows[:2], rows[1]]):
        (copy / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in change))
        assert ("run", "files") in wrong(copy)


def test_a_run_without_its_server_s_log_says_so(copy):
    (copy / "audit" / "log.sqlite").unlink()
    assert [(check.passed, check.detail) for check in verify(copy).checks if check.subject == "server"] == [
        (None, "the server's log is not here")
    ]


def test_a_decoy_hides_no_site(copy):
    shutil.copytree(copy / "nodes" / "a" / "custody", copy / "custody")
    (copy / "nodes" / "c" / "custody" / "log.sqlite").write_bytes(b"garbage")
    assert ("c", "log") in wrong(copy)


@pytest.mark.parametrize(
    "line", ["5", "[]", '{"round": []}', '{"round": 1}', "[" * 100_000, "{", '{"round": 1, "uplink_bytes": "x"}']
)
def test_crafted_lines_of_rounds_are_named(copy, line):
    (copy / "rounds.jsonl").write_text(f"{line}\n")
    assert ("run", "files") in wrong(copy)


def test_an_emptied_list_of_rounds_is_noticed(copy):
    (copy / "rounds.jsonl").write_text("")
    assert ("server", "rounds") in wrong(copy)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON entries BEGIN SELECT 1; END",
        "CREATE VIEW more AS SELECT 1",
        "UPDATE origin SET hash = X'00'",
        "INSERT INTO entries SELECT 0, entry, hash FROM entries WHERE number = 1",
    ],
)
def test_a_log_whose_tables_are_others_is_not_trusted(copy, statement):
    tamper(copy / "nodes" / "a" / "custody" / "log.sqlite", statement)
    assert ("a", "log") in wrong(copy)
