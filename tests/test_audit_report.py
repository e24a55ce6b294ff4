"""The audit report: what it says of a run, in which words, and the gate that it can be."""

import json
import shutil
import subprocess
import tomllib

import pytest
from audited_run import Chain, make_run
from run_files import checked, read

from fedglm.simulations.audit_facts import read_facts
from fedglm.simulations.audit_gate import Gate, breaches
from fedglm.simulations.audit_items import items
from fedglm.simulations.audit_report import profile_names, read_profile, write_audit_report
from fedglm.simulations.run_record import ReportError

CANARIES = {
    "passed": True,
    "canaries": [
        {"kind": "gradients", "canaries": 20000, "claimed": 2.0, "bound": 1.2, "estimate": 1.99, "contradicts": False}
    ],
    "trials": [{"name": "fresh noise", "passed": True, "said": "two runs correlate by 0"}],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        return make_run(tmp_path_factory.mktemp("audited") / "run")


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def statuses(folder):
    return {item.number: item.status for item in items(read_facts(folder))}


def test_what_the_records_show_is_held(run):
    found = statuses(run)
    assert {number for number, status in found.items() if status == "held"} >= {1, 2, 3, 4, 5, 6, 7, 9, 11}
    assert (found[8], found[12], found[10]) == ("not held", "not held", "not applicable")


def test_without_sites_records_their_items_are_not_held(copy, tmp_path):
    (copy / "nodes").rename(tmp_path / "elsewhere")
    found = statuses(copy)
    assert [found[number] for number in (1, 4, 5, 6, 9, 11)] == ["not held"] * 6
    page, _ = write_audit_report(read_facts(copy), items(read_facts(copy)), [], None)
    assert "The server's records alone" in read(page)
    beside = read_facts(copy, [tmp_path / "elsewhere" / name for name in "abc"])
    assert [item.status for item in items(beside) if item.number in (1, 4, 5, 6, 9, 11)] == ["held"] * 6


def test_an_empirical_audit_is_shown_and_one_that_failed_too(copy):
    (copy / "audit" / "canaries.json").write_text(json.dumps(CANARIES))
    assert statuses(copy)[8] == "held"
    (copy / "audit" / "canaries.json").write_text(json.dumps({**CANARIES, "passed": False}))
    assert statuses(copy)[8] == "not held"


def test_a_run_without_noise_holds_little(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    folder = make_run(tmp_path / "run", private=False)
    found = statuses(folder)
    assert [found[number] for number in (1, 2, 4, 5)] == ["not held"] * 4
    page, _ = write_audit_report(read_facts(folder), items(read_facts(folder)), [], None)
    assert "no epsilon holds" in page.read_text()


def test_the_page_is_whole_and_says_what_was_found(run):
    facts = read_facts(run)
    profiles = [read_profile(name) for name in profile_names()]
    page, data = write_audit_report(facts, items(facts), profiles, None)
    checked(page)
    text = page.read_text()
    assert "<script" not in text
    assert "default-src &#x27;none&#x27;" in text
    assert "compliant" not in text.lower()
    assert "164.312(b) audit controls" in text
    assert text.count("<article") == 13
    told = json.loads(data.read_text())
    assert (told["verified"], len(told["items"]), len(told["sites"])) == (True, 13, 3)
    assert len(told["sites"][0]["releases"]) == 3


def test_a_record_that_was_changed_stands_at_the_top(copy):
    chain = Chain(copy / "nodes" / "b" / "custody" / "ledger.sqlite")
    chain.texts[1] = chain.texts[1].replace('"round":2', '"round":3')
    chain.write(chain=False)
    facts = read_facts(copy)
    page, _ = write_audit_report(facts, items(facts), [], None)
    assert "The records are not whole" in page.read_text()
    assert statuses(copy)[11] == "not held"


@pytest.mark.parametrize("name", profile_names())
def test_a_profile_has_words_for_each_item(name):
    profile = read_profile(name)
    assert set(profile.references) == {str(number) for number in range(1, 14)}
    assert profile.caveat.strip()


def test_no_profile_of_that_name():
    with pytest.raises(ReportError, match="take gdpr, hipaa, nist-800-226"):
        read_profile("iso")


RULES = {
    'noise_multiplier_at_least = 1.0\nepsilon_at_most = 50.0\nrequire = ["verified", "countersignature"]': [],
    "noise_multiplier_at_least = 2.0": ["noise_multiplier_at_least"],
    "clipping_norm_at_most = 0.5": ["clipping_norm_at_most"],
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
}


@pytest.mark.parametrize(("rules", "broken"), RULES.items())
def test_the_gate_names_each_rule_that_is_not_met(run, rules, broken):
    facts = read_facts(run)
    found = breaches(Gate.model_validate(tomllib.loads(rules)), facts, items(facts))
    assert list(dict.fromkeys(breach.rule for breach in found)) == broken


def test_the_command_is_a_gate(fedglm, run, tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text("epsilon_at_most = 50.0\n")
    said = fedglm("audit", "report", run, "--policy", rules)
    assert (said.code, "all rules are met" in said.out) == (0, True)
    rules.write_text("epsilon_at_most = 0.5\n")
    said = fedglm("audit", "report", run, "--policy", rules)
    assert (said.code, "not met: epsilon_at_most" in said.out) == (1, True)
    assert fedglm("audit", "report", run, "--policy", rules, "--json").code == 1
    rules.write_text("epsilon_most = 0.5\n")
    assert "the rules are noise_multiplier_at_least" in fedglm("audit", "report", run, "--policy", rules).line()
    assert "take gdpr, hipaa" in fedglm("audit", "report", run, "--profile", "iso").line()
    assert "holds no run" in fedglm("audit", "report", tmp_path).line()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_the_page_prints(run, tmp_path):
    facts = read_facts(run)
    page, _ = write_audit_report(facts, items(facts), [read_profile("hipaa")], None)
    out = tmp_path / "report.pdf"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--print-to-pdf={out}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"%PDF")
