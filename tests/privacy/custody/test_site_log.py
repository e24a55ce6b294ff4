"""A site's log and its ledger say the same, whatever happens between them."""

import shutil
import sqlite3
from dataclasses import replace

import pytest
from custodies import MECHANISM, SERVER, custody, run_plan
from ledgers import sha256

from fedglm.privacy.accounting.accountant import compute_epsilon
from fedglm.privacy.custody import site_log
from fedglm.privacy.custody.site_log import Release
from fedglm.privacy.custody.store import LEDGER
from fedglm.privacy.errors import LogError, Refusal
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import LOG, SignedLog
from fedglm.privacy.policy.policy_file import sign_policy
from fedglm.privacy.policy.run_plan import SignedPlan


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "site" / "custody"


def opened(folder, **changes):
    return custody(folder, private=True, **changes)


def leaving(site, number, **changes):
    content = sha256(f"update {number}")
    charge = site.make_charge("run", number, MECHANISM, sha256("plan"), content, purpose="update", attempt=content[:32])
    return Release(replace(charge, **changes), 100, 7, "topk-fp16", ["bytes", "metrics"])


def entries(folder, *kinds):
    seen = []
    SignedLog(folder / LOG, on_entry=seen.append)
    return [found for found in seen if not kinds or found["kind"] in kinds]


def test_what_leaves_is_written_down_with_all_that_it_was_charged_for(folder):
    site = opened(folder)
    site.charge(leaving(site, 1))
    site.charge(leaving(site, 2))
    first, second = entries(folder, "release")
    rows = site.ledger.rows()
    assert (second["row"], second["row_hash"], second["release"]) == (2, rows[1].hash, sha256("update 2"))
    assert (second["bytes"], second["non_zeros"], second["codec"]) == (100, 7, "topk-fp16")
    assert (second["mechanism"], second["policy"]) == (MECHANISM.to_fields(), site.policy.sha256)
    exact = [compute_epsilon([MECHANISM.event()] * count, 1e-3).epsilon for count in (1, 2)]
    assert [first["epsilon"], second["epsilon"]] == pytest.approx(exact, abs=0.02)


def test_bytes_that_leave_again_are_written_down_once(folder):
    site = opened(folder)
    for _ in range(3):
        site.charge(leaving(site, 1))
    assert len(entries(folder, "release")) == len(entries(folder, "resent")) == 1
    assert len(site.ledger.rows()) == 1


def test_the_policy_in_force_is_written_down_when_it_is_another(folder):
    opened(folder)
    opened(folder)
    (first,) = entries(folder, "policy")
    tighter = opened(folder).policy.model_copy(update={"steps_at_most": 3})
    (folder / "policy.toml").write_text(tighter.to_toml())
    sign_policy(folder / "policy.toml", SigningKey.load(folder / "site.key"))
    opened(folder)
    assert [found["content"]["steps_at_most"] for found in entries(folder, "policy")] == [100, 3]
    assert first["policy"] != tighter.sha256


def test_a_new_key_of_the_site_goes_on_with_the_log(folder):
    opened(folder)
    before = SignedLog(folder / LOG).read_tree_head()
    (folder / "site.key").unlink()
    key = SigningKey.create(folder / "site.key")
    sign_policy(folder / "policy.toml", key)
    again = opened(folder)
    again.charge(leaving(again, 1))
    (found,) = entries(folder, "key")
    assert found["key"] == key.public.hex
    assert SignedLog(folder / LOG).read_tree_head().is_by(key.public)
    assert not before.is_by(key.public)


def test_a_refusal_is_written_down_by_its_rule_alone(folder):
    site = opened(folder)

    def refuse():
        with site.log_refusals("run", 3):
            raise Refusal("codecs", "the codec zip of patient 4711 is not listed")

    with pytest.raises(Refusal):
        refuse()
    (found,) = entries(folder, "refused")
    assert (found["rule"], found["run"], found["round"]) == ("codecs", "run", 3)
    assert "4711" not in str(entries(folder))


def test_a_server_cannot_fill_the_log_with_refusals(folder, monkeypatch):
    monkeypatch.setattr(site_log, "_MAX_DENSE_ENTRIES", 5)
    site = opened(folder)
    for number in range(20):
        site.log.record_refusal("codecs", "run", number)
        site.log.record_refusal("plans", "run", number)
    assert len(entries(folder, "refused")) == 10
    assert len(SignedLog(folder / LOG).read_tree_head().root) == 64
    monkeypatch.setattr(site_log, "utc_now", lambda: "2099-01-01T00:00:00+00:00")
    site.log.record_refusal("codecs", "run", 21)
    assert len(entries(folder, "refused")) == 11


def test_a_server_cannot_fill_the_log_with_plans(folder, monkeypatch):
    monkeypatch.setattr(site_log, "_MAX_DENSE_ENTRIES", 5)
    site = opened(folder)
    plans = [SignedPlan.sign(run_plan("a" * 64, run=f"run {number}"), SERVER) for number in range(8)]
    for signed in [*plans[:5], *plans[:5]]:
        site.log.record_plan(signed, ["plans"])
    with pytest.raises(Refusal, match="idle-plans"):
        site.log.record_plan(plans[5], ["plans"])
    site.charge(leaving(site, 1, plan=plans[2].plan.sha256))
    site.log.record_plan(plans[5], ["plans"])
    with pytest.raises(Refusal, match="idle-plans"):
        opened(folder).log.record_plan(plans[6], ["plans"])
    monkeypatch.setattr(site_log, "utc_now", lambda: "2099-01-01T00:00:00+00:00")
    site.log.record_plan(plans[6], ["plans"])
    assert len(entries(folder, "plan")) == 7


def test_a_node_that_is_killed_between_charge_and_entry_writes_the_entry_later(folder, monkeypatch):
    site = opened(folder)
    site.charge(leaving(site, 1))
    with monkeypatch.context() as patch:
        patch.setattr(site_log.SignedLog, "_write_entries", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            site.charge(leaving(site, 2))
    again = opened(folder)
    assert (len(again.ledger.rows()), len(entries(folder, "release"))) == (2, 1)
    again.charge(leaving(again, 2))
    assert [(found["kind"], found["release"][:8]) for found in entries(folder, "release", "charged", "resent")] == [
        ("release", sha256("update 1")[:8]),
        ("charged", sha256("update 2")[:8]),
        ("resent", sha256("update 2")[:8]),
    ]
    again.charge(leaving(again, 3))
    assert [found["row"] for found in entries(folder, "release", "charged")] == [1, 2, 3]


def test_what_was_charged_for_before_a_new_policy_stands_before_it(folder, monkeypatch):
    site = opened(folder)
    with monkeypatch.context() as patch:
        patch.setattr(site_log.SignedLog, "_write_entries", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            site.charge(leaving(site, 1))
    tighter = site.policy.model_copy(update={"steps_at_most": 9, "delta": 2e-3})
    (folder / "policy.toml").write_text(tighter.to_toml())
    sign_policy(folder / "policy.toml", SigningKey.load(folder / "site.key"))
    opened(folder)
    kinds = [found["kind"] for found in entries(folder)]
    assert kinds == ["opened", "policy", "charged", "policy"]
    assert entries(folder, "charged")[0]["delta"] == 1e-3


def test_what_was_made_under_another_policy_does_not_leave(folder):
    site = opened(folder)
    other = site.policy.model_copy(update={"steps_at_most": 9})
    (folder / "policy.toml").write_text(other.to_toml())
    sign_policy(folder / "policy.toml", SigningKey.load(folder / "site.key"))
    again = opened(folder)
    with pytest.raises(Refusal, match="policy-changed"):
        site.charge(leaving(site, 1))
    assert again.ledger.rows() == []
    again.charge(leaving(again, 1))


def test_a_charge_that_is_refused_leaves_no_entry(folder):
    one = compute_epsilon([MECHANISM.event()], 1e-3).epsilon
    site = opened(folder, epsilon=one + 0.02)
    site.charge(leaving(site, 1))
    with pytest.raises(Refusal, match="epsilon-budget"):
        site.charge(leaving(site, 2))
    assert len(entries(folder, "release")) == 1


@pytest.mark.parametrize("which", [LEDGER, LOG])
def test_a_ledger_that_was_put_back_alone_is_refused_and_a_log_is_made_whole_from_the_ledger(folder, tmp_path, which):
    site = opened(folder)
    site.charge(leaving(site, 1))
    shutil.copy(folder / which, tmp_path / "old")
    site.charge(leaving(site, 2))
    anchor = site.log.head  # which the server keeps
    shutil.copy(tmp_path / "old", folder / which)
    if which == LEDGER:
        with pytest.raises(LogError, match="has 1 rows, and the log shows 2: it was rolled back"):
            opened(folder)
        return
    again = opened(folder)
    again.charge(leaving(again, 3))
    assert not again.log.contains(anchor)
    assert [found["row"] for found in entries(folder, "release", "charged")] == [1, 2, 3]


def test_a_ledger_of_other_rows_contradicts_the_log(folder, tmp_path):
    site = opened(folder)
    shutil.copytree(folder, tmp_path / "clone")
    site.charge(leaving(site, 1))
    other = custody(tmp_path / "clone", private=True)
    other.charge(leaving(other, 9))
    shutil.copy(tmp_path / "clone" / LEDGER, folder / LEDGER)
    with pytest.raises(LogError, match="row 1 of the ledger is another than the log shows"):
        opened(folder)


def test_an_entry_about_another_row_than_the_next_is_no_log(folder):
    site = opened(folder)
    site.charge(leaving(site, 1))
    (found,) = entries(folder, "release")
    key = SigningKey.load(folder / "site.key")
    fields = {name: value for name, value in found.items() if name not in ("number", "time", "kind")}
    SignedLog(folder / LOG, key).append("release", {**fields, "row": 3})
    with pytest.raises(LogError, match="it is about row 3 of the ledger, and row 2 is next"):
        opened(folder)


def test_without_a_log_nothing_leaves(folder):
    opened(folder)
    (folder / LOG).unlink()
    with pytest.raises(LogError, match="it is not there"):
        opened(folder)
    sqlite3.connect(folder / LOG).close()
    with pytest.raises(LogError, match="is no log"):
        opened(folder)
