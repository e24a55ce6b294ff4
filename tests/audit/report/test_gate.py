"""The gate: it names each rule that is not met; records that are incomplete or absent break every gate."""

import shutil
import sqlite3
from dataclasses import replace

import pytest
from audit_files import broken_by, statuses
from audited_run import SITES, Chain, kept_run, small_nodes
from custodies import MECHANISM, SERVER

from fedglm.audit.records.checks import select_failed
from fedglm.audit.report.facts import read_facts
from fedglm.audit.report.sentences import write_headline, write_summary
from fedglm.audit.verify.verification import verify
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.custody.site_log import CustodyLog
from fedglm.privacy.custody.transaction import ReleaseTransaction
from fedglm.privacy.dp.mechanism import make_metrics_mechanism
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.log.tree_head import SignedTreeHead
from fedglm.privacy.policy.policy_file import load_policy, sign_policy
from fedglm.server.rounds.countersigning import Countersigning

pytestmark = pytest.mark.usefixtures("unsynced")

NOISE = ["noise_multiplier_at_least", "clipping_norm_at_most", "records_per_unit_at_most", "unit"]
BUDGET = ["epsilon_at_most", "delta_at_most"]
RULES = {
    'noise_multiplier_at_least = 1.0\nepsilon_at_most = 50.0\nrequire = ["verified", "countersignature"]': [],
    "noise_multiplier_at_least = 2.0": ["noise_multiplier_at_least"],
    "clipping_norm_at_most = 0.5": ["clipping_norm_at_most"],
    "records_per_unit_at_most = 1": [],
    "epsilon_at_most = 1.0": ["epsilon_at_most"],
    "delta_at_most = 1e-6": ["delta_at_most"],
    'unit = "patient_id"': ["unit"],
    'require = ["tls", "canaries", "attack", "retention", "encryption", "signed-updates"]': [
        "tls",
        "canaries",
        "attack",
        "retention",
        "encryption",
        "signed-updates",
    ],
    'require = ["no-metrics"]': [],
    "items = [1, 11]": [],
    "items = [12]": ["item 12"],
    "items = [14]": ["item 14"],
}
ALL = """
noise_multiplier_at_least = 0.1
clipping_norm_at_most = 9.0
records_per_unit_at_most = 9
unit = "record"
epsilon_at_most = 49.0
delta_at_most = 1e-2
"""


def log_of(folder, site="a"):
    return folder / "nodes" / site / "custody" / "log.sqlite"


def key_of(folder, site="a"):
    return SigningKey.load(folder / "nodes" / site / "custody" / "site.key")


@pytest.fixture(scope="module")
def facts(run):
    """What the run's records show, read once."""
    return read_facts(run)


@pytest.mark.parametrize(("rules", "broken"), RULES.items())
def test_the_gate_names_each_rule_that_is_not_met(facts, rules, broken):
    assert broken_by(facts, rules) == broken


def test_the_command_is_a_gate(fedglm, run, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text("epsilon_at_most = 50.0\n")
    result = fedglm("audit", "report", run, "--policy", rules)
    assert (result.code, "all rules are met" in result.out) == (0, True)
    rules.write_text("epsilon_at_most = 0.5\n")
    result = fedglm("audit", "report", run, "--policy", rules)
    assert (result.code, "not met: epsilon_at_most" in result.out) == (1, True)
    assert fedglm("audit", "report", run, "--policy", rules, "--json").code == 1
    rules.write_text("epsilon_most = 0.5\n")
    assert "the rules are noise_multiplier_at_least" in fedglm("audit", "report", run, "--policy", rules).line()
    assert "take gdpr, hipaa" in fedglm("audit", "report", run, "--profile", "iso").line()
    assert "holds no run" in fedglm("audit", "report", tmp_path).line()


def test_what_left_without_noise_breaks_each_rule_about_noise(tmp_path):
    kept_run(tmp_path, small_nodes(tmp_path / "nodes", private=False), mechanism=None, rounds=1)
    facts = read_facts(tmp_path)
    assert broken_by(facts, ALL) == [*NOISE, *BUDGET]
    for rule in ALL.strip().splitlines():
        assert broken_by(facts, rule) == [rule.split(" ")[0]]
    assert broken_by(facts, "") == []


# --- records that are not whole, or not here


def rewritten(folder):
    """A log that says of itself that another key took over."""
    chain, key = Chain(log_of(folder)), key_of(folder)
    other = {"kind": "key", "key": key.public.hex, "previous": "0" * 64, "vouched": None, "number": 0}
    chain.texts.insert(1, canonical_json({**other, "time": "2027-01-04T10:00:00+00:00"}).decode())
    chain.numbered()
    chain.write(chain=True, key=key)


def in_another_mode(folder):
    """A log whose content may lie in a file beside it."""
    with sqlite3.connect(log_of(folder)) as database:
        assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
    database.close()


def without_server(folder):
    (folder / "audit" / "log.sqlite").unlink()


def garbled_server(folder):
    (folder / "audit" / "log.sqlite").write_bytes(b"garbage")


def without_site(folder):
    shutil.rmtree(folder / "nodes" / "b")


def without_sites(folder):
    shutil.rmtree(folder / "nodes")


BROKEN = {
    rewritten: ["verified"],
    in_another_mode: ["verified", "sites"],
    without_server: ["server"],
    garbled_server: ["verified", "server"],
    without_site: ["sites"],
    without_sites: ["sites"],
}


@pytest.mark.parametrize(("change", "broken"), BROKEN.items())
def test_records_that_are_not_whole_or_not_here_break_every_gate(copy, change, broken):
    change(copy)
    facts = read_facts(copy)
    assert broken_by(facts, "")[: len(broken)] == broken
    assert broken_by(facts, ALL)[: len(broken)] == broken
    assert not facts.is_whole
    assert "at epsilon" not in write_headline(facts)
    assert "not shown" in write_summary(facts)[1]


@pytest.mark.parametrize("change", [without_server, garbled_server, without_site, without_sites])
def test_what_only_missing_records_could_show_is_not_held(copy, change):
    change(copy)
    by_item = statuses(copy)
    assert [by_item[number] for number in (1, 2, 4, 5, 6, 9, 11)] == ["not held"] * 7
    assert by_item[10] != "held"


# --- countersignatures


def unsealed(folder, monkeypatch):
    """A run of one round, which the server seals no log of."""
    monkeypatch.setattr(Countersigning, "seal", lambda *_: None)
    kept_run(folder, small_nodes(folder / "nodes"), rounds=1)
    return folder


def test_logs_that_nobody_countersigned(tmp_path, monkeypatch):
    folder = unsealed(tmp_path / "run", monkeypatch)
    assert select_failed(verify(folder).checks) == []
    assert broken_by(folder, 'require = ["countersignature"]\nitems = [11]') == ["countersignature", "item 11"]


def test_an_owner_s_other_key_countersigns_nothing(tmp_path, monkeypatch):
    folder, other = unsealed(tmp_path / "run", monkeypatch), SigningKey.generate()
    for site in SITES:
        log = SignedLog(log_of(folder, site), key_of(folder, site))
        own = log.read_tree_head()
        log.append(
            "countersigned", {**own.to_fields(), "by": other.public.hex, "countersignature": own.countersign(other)}
        )
    wrong = select_failed(verify(folder).checks)
    assert [check.name for check in wrong] == ["countersigner"] * 3
    assert "signed none of the plans" in wrong[0].detail


def test_a_countersignature_must_be_over_the_last_release(tmp_path, monkeypatch):
    """The server's own, over the first two entries alone."""
    folder = unsealed(tmp_path / "run", monkeypatch)
    for site in SITES:
        log = SignedLog(log_of(folder, site), key_of(folder, site))
        (record,) = (site_log for site_log in verify(folder).sites if site_log.origin == log.origin)
        early = SignedTreeHead.sign(
            log.origin, 2, record.compute_root(2), "2027-01-04T10:00:00+00:00", key_of(folder, site)
        )
        own = {**early.to_fields(), "by": SERVER.public.hex, "countersignature": early.countersign(SERVER)}
        log.append("countersigned", own)
    assert select_failed(verify(folder).checks) == []
    assert broken_by(folder, 'require = ["countersignature"]') == ["countersignature"]


# --- figures


def test_a_policy_that_is_signed_after_the_run_changes_nothing_of_what_was_spent(copy):
    before = {site.name: site.weakest_budget for site in read_facts(copy).sites}
    for change in ({"delta": 9e-3}, {"delta": None, "epsilon": None}):
        folder, key = copy / "nodes" / "a" / "custody", key_of(copy)
        later = load_policy(folder / "policy.toml", key.public).model_copy(update=change)
        (folder / "policy.toml").write_text(later.to_toml())
        sign_policy(folder / "policy.toml", key)
        signed = load_policy(folder / "policy.toml", key.public)
        ledger, log = Ledger(folder / "ledger.sqlite"), CustodyLog(folder / "log.sqlite", key)
        ReleaseTransaction(ledger, log).activate_policy(signed)
        facts = read_facts(copy)
        assert {site.name: site.weakest_budget for site in facts.sites} == before
        assert broken_by(facts, "epsilon_at_most = 3.0") == ["epsilon_at_most"]


def test_measures_have_a_norm_of_their_own(tmp_path):
    """The norm of gradients is the policy's, and what is measured is cut to its own bounds."""
    narrow = replace(MECHANISM, clipping_norm=0.5)
    made = small_nodes(tmp_path / "nodes", every={"share_metrics": True, "clipping_norm_at_most": 0.5})
    measures = {"metrics": make_metrics_mechanism(narrow, 20.0), "node_metrics": True}
    kept_run(tmp_path, made, mechanism=narrow, rounds=1, **measures)
    assert select_failed(verify(tmp_path).checks) == []
    assert broken_by(tmp_path, 'clipping_norm_at_most = 0.5\nrequire = ["no-metrics"]') == ["no-metrics"]


def test_a_report_leaves_the_records_as_they_are(copy, fedglm):
    """A writer was killed: its journal says how the file was before, and an auditor's SQLite would roll it back."""
    path = log_of(copy)
    scratch = path.with_name("scratch")
    shutil.copy(path, scratch)
    database = sqlite3.connect(scratch, isolation_level=None)
    for statement in ("PRAGMA cache_size = 1", "PRAGMA cache_spill = 1", "BEGIN IMMEDIATE", "DELETE FROM entries"):
        database.execute(statement)
    shutil.copy(scratch, path)
    shutil.copy(scratch.with_name("scratch-journal"), path.with_name("log.sqlite-journal"))
    database.close()
    scratch.unlink()
    before = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    assert len(before["log.sqlite-journal"]) > 512
    result = fedglm("audit", "report", copy)
    assert (result.code, "records: whole" in result.out) == (0, True)
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == before


def test_a_log_that_is_changed_while_it_is_read_is_named(copy):
    record = verify(copy).sites[0]
    chain = Chain(record.path)
    chain.texts[-1] = chain.texts[-1].replace("2", "3", 1)
    chain.write(chain=True)
    with pytest.raises(PrivacyError, match="changed while it was read"):
        list(record.read_texts())
