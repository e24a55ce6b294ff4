"""The audit report: what it says of a run, in which words, and the gate that it can be."""

import json
import shutil
import subprocess

import pytest
from audit_files import attack_audit, broken_by, canary_audit, keep, statuses
from audited_run import Chain, kept_run, small_nodes
from run_files import checked, read

from fedglm.audit.bundle.export import export_bundle
from fedglm.audit.report.facts import read_facts
from fedglm.audit.report.gate import Breach
from fedglm.audit.report.items import assess_items
from fedglm.audit.report.page import build_report_json, list_profiles, read_profile, write_audit_report
from fedglm.privacy.keys.signing import SigningKey
from fedglm.run_folder.record import ReportError


def test_what_the_records_show_is_held(run):
    by_item = statuses(run)
    assert {number for number, status in by_item.items() if status == "held"} >= {1, 2, 3, 4, 5, 6, 7, 9, 11}
    assert (by_item[8], by_item[12], by_item[10]) == ("not held", "not held", "not applicable")


def test_without_sites_records_their_items_are_not_held(copy, tmp_path):
    (copy / "nodes").rename(tmp_path / "elsewhere")
    by_item = statuses(copy)
    assert [by_item[number] for number in (1, 4, 5, 6, 9, 11)] == ["not held"] * 6
    page, _ = write_audit_report(read_facts(copy), assess_items(read_facts(copy)), [], None)
    assert "The server's records alone" in read(page)
    beside = read_facts(copy, [tmp_path / "elsewhere" / name for name in "abc"])
    assert [item.status for item in assess_items(beside) if item.number in (1, 4, 5, 6, 9, 11)] == ["held"] * 6
    bundles = [tmp_path / f"{name}.zip" for name in "abc"]
    for name, path in zip("abc", bundles, strict=True):
        folder = tmp_path / "elsewhere" / name
        export_bundle(folder, path, "auditor", SigningKey.load(folder / "custody" / "site.key"))
    sent = read_facts(copy, bundles)
    assert [(site.name, site.weakest_budget, site.releases) for site in sent.sites] == [
        (site.name, site.weakest_budget, site.releases) for site in beside.sites
    ]
    assert sent.is_whole


def test_an_empirical_audit_is_judged_by_its_figures_and_of_the_run_s_own_code(copy):
    valid = canary_audit(copy)
    (figures,), (trial, *others) = valid["canaries"], valid["trials"]
    assert broken_by(copy, 'require = ["canaries", "attack"]') == ["canaries", "attack"]
    keep(copy, "canaries", valid)
    facts = read_facts(copy)
    assert statuses(facts)[8] == "held"
    assert broken_by(facts, 'require = ["canaries"]') == []
    for change in (
        {"canaries": [{**figures, "f_dp": 2.1}], "passed": True},
        {"trials": [{**trial, "outcome": "failed"}, *others], "passed": True},
        {"trials": [{**trial, "outcome": "not made"}, *others]},
        {"trials": others},
        {"code": "0" * 64},
        {"model": "0" * 64},
    ):
        keep(copy, "canaries", {**valid, **change})
        facts = read_facts(copy)
        assert statuses(facts)[8] == "not held", change
        assert broken_by(facts, 'require = ["canaries"]') == ["canaries"], change
    keep(copy, "canaries", valid)
    keep(copy, "attack", attack_audit(copy))
    facts = read_facts(copy)
    assert (statuses(facts)[8], broken_by(facts, 'require = ["attack"]')) == ("held", [])
    keep(copy, "attack", attack_audit(copy, code="0" * 64))
    facts = read_facts(copy)
    assert (statuses(facts)[8], broken_by(facts, 'require = ["attack"]')) == ("not held", ["attack"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("canaries", {"canaries": []}),
        ("canaries", {"canaries": 5}),
        ("canaries", {"trials": []}),
        ("canaries", {"canaries": [{"kind": "gradients"}]}),
        ("canaries", {"trials": [{"name": "x", "outcome": "well", "said": "y"}]}),
        ("canaries", {"code": 1}),
        ("attack", {"results": []}),
        ("attack", {"results": [{"attack": "tokens"}]}),
        ("attack", {"epsilon": None}),
    ],
)
def test_a_file_of_an_empirical_audit_that_is_none_is_named(copy, fedglm, name, change):
    keep(copy, name, {**(canary_audit(copy) if name == "canaries" else attack_audit(copy)), **change})
    result = fedglm("audit", "report", copy)
    assert f"{name}.json is damaged at {next(iter(change))}" in result.line()


def test_a_result_that_is_none_is_named_or_left_out(copy, fedglm):
    (copy / "summary.json").write_text(json.dumps({"model_sha256": json.loads((copy / "summary.json").read_text())[
        "model_sha256"], "baselines": [1], "accuracy": "much"}))  # fmt: skip
    assert statuses(copy)[13] == "not held"
    (copy / "summary.json").write_bytes(b"\xff")
    assert fedglm("audit", "report", copy).code == 2


def test_a_run_without_noise_holds_little(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    kept_run(tmp_path, small_nodes(tmp_path / "nodes", private=False), mechanism=None, rounds=1)
    facts = read_facts(tmp_path)
    by_item = statuses(facts)
    assert [by_item[number] for number in (1, 2, 4, 5)] == ["not held"] * 4
    page, _ = write_audit_report(facts, assess_items(facts), [], None)
    assert "no epsilon holds" in page.read_text()


def test_the_page_is_complete_and_shows_all_items(run):
    facts = read_facts(run)
    profiles = [read_profile(name) for name in list_profiles()]
    page, data = write_audit_report(facts, assess_items(facts), profiles, None)
    checked(page)
    text = page.read_text()
    assert "<script" not in text
    assert "default-src &#x27;none&#x27;" in text
    assert "compliant" not in text.lower()
    assert "164.312(b) audit controls" in text
    assert text.count("<article") == 13
    report = json.loads(data.read_text())
    assert (report["verified"], len(report["items"]), len(report["sites"])) == (True, 13, 3)
    assert len(report["sites"][0]["releases"]) == 3
    assert {tuple(check) for check in report["checks"]} == {("subject", "name", "held", "said", "missing")}


def test_broken_rules_have_the_keys_of_published_reports(run):
    facts = read_facts(run)
    breaches = [Breach("unit", "none is protected")]
    rules = build_report_json(facts, [], [], breaches)["rules"]
    assert rules == {"met": False, "broken": [{"rule": "unit", "said": "none is protected"}]}
    assert build_report_json(facts, [], [], [])["rules"] == {"met": True, "broken": []}


def test_a_record_that_was_changed_stands_at_the_top(copy, fedglm):
    chain = Chain(copy / "nodes" / "b" / "custody" / "ledger.sqlite")
    chain.texts[1] = chain.texts[1].replace('"round":2', '"round":3')
    chain.write(chain=False)
    facts = read_facts(copy)
    page, _ = write_audit_report(facts, assess_items(facts), [], None)
    assert "The records are not whole" in page.read_text()
    assert statuses(copy)[11] == "not held"
    result = fedglm("audit", "report", copy)
    assert (result.code, "NOT WHOLE" in result.out) == (1, True)


@pytest.mark.parametrize("name", list_profiles())
def test_a_profile_has_words_for_each_item(name):
    profile = read_profile(name)
    assert set(profile.references) == {str(number) for number in range(1, 14)}
    assert profile.caveat.strip()


def test_no_profile_of_that_name():
    with pytest.raises(ReportError, match="take gdpr, hipaa, nist-800-226"):
        read_profile("iso")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="no browser here")
def test_the_page_prints(run, tmp_path):
    facts = read_facts(run)
    page, _ = write_audit_report(facts, assess_items(facts), [read_profile("hipaa")], None)
    out = tmp_path / "report.pdf"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--print-to-pdf={out}", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes().startswith(b"%PDF")
