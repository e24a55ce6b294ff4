"""The sentences of an audit report about unusual runs: they claim no more than the records show."""

import json
from dataclasses import replace

import pytest
from audit_files import broken_by
from audited_run import SITES, kept_run, make_run, small_nodes
from custodies import MECHANISM
from custodies import custody as custody_of
from flwr.app import Error, Message

from fedglm.audit.report.facts import read_facts
from fedglm.audit.report.flow import draw_data_flow
from fedglm.audit.report.items import assess_items
from fedglm.audit.report.page import build_report_json, render_report_page
from fedglm.audit.report.sentences import write_headline, write_summary
from fedglm.privacy.custody import store
from fedglm.privacy.custody.site_log import Release
from fedglm.privacy.dp.mechanism import make_metrics_mechanism
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import sign_policy
from fedglm.server.rounds.participants import FederationError

pytestmark = pytest.mark.usefixtures("unsynced", "unrendered")


def permit(folder, site, **changes):
    """Sign another policy for a site of the run in `folder`."""
    own = folder / "nodes" / site / "custody"
    policy = Policy.from_toml((own / "policy.toml").read_text()).model_copy(update=changes)
    (own / "policy.toml").write_text(policy.to_toml())
    sign_policy(own / "policy.toml", SigningKey.load(own / "site.key"))


def idle(node):
    """A node that fails before it trains."""

    def answer(message):
        if message.metadata.message_type == "train":
            return Message(Error(code=1, reason="no memory"), reply_to=message)
        return node(message)

    return answer


def page_of(facts):
    return render_report_page(facts, assess_items(facts), [], None)


def test_each_data_set_of_a_site_counts(tmp_path, monkeypatch):
    """Site a has spent most on one, and the other is told at a greater delta."""
    small_nodes(tmp_path / "nodes")
    permit(tmp_path, "a", data_set="old", delta=0.04)
    original = store.compute_commitment
    with monkeypatch.context() as patch:
        patch.setattr(store, "compute_commitment", lambda _records, salt: original([[b"other"]], salt))
        kept_run(tmp_path / "first", small_nodes(tmp_path / "nodes"), rounds=1)
    permit(tmp_path, "a", data_set="a", delta=1e-3)
    kept_run(tmp_path, small_nodes(tmp_path / "nodes"), rounds=3)
    facts = read_facts(tmp_path)
    own, old = facts.sites[0].budgets
    assert (own.data_set, own.delta, old.data_set, old.delta) == ("a", 1e-3, "old", 0.04)
    assert broken_by(facts, "delta_at_most = 2e-3") == ["delta_at_most"]
    assert broken_by(facts, f"epsilon_at_most = {own.epsilon + 1}\ndelta_at_most = 0.04") == []
    assert broken_by(facts, f"epsilon_at_most = {own.epsilon - 0.1}")[0] == "epsilon_at_most"
    assert "delta 0.04" in write_summary(facts)[1]
    assert [one["data_set"] for one in build_report_json(facts, [], [], None)["sites"][0]["data_sets"]] == ["a", "old"]
    assert "<bdi>old</bdi>" in page_of(facts)


def test_an_epsilon_over_releases_that_protect_several_units_is_none_s(tmp_path):
    kept_run(tmp_path / "first", small_nodes(tmp_path / "nodes"), rounds=1)
    for site in SITES:
        permit(tmp_path, site, unit="patient_id")
    made = small_nodes(tmp_path / "nodes", every={"unit": "patient_id"})
    kept_run(tmp_path, made, rounds=1, mechanism=replace(MECHANISM, unit="patient_id"))
    facts = read_facts(tmp_path)
    assert facts.is_whole
    assert "protect several units (patient_id and record)" in write_headline(facts)
    assert "not shown for each patient_id" in write_summary(facts)[1]
    for item in assess_items(facts)[:2]:
        assert item.status == "not held"
        assert "protect each patient_id and record, the plan each patient_id" in item.evidence[0]
    assert broken_by(facts, "items = [1, 2]") == ["item 1", "item 2"]


def test_where_nothing_left_nothing_is_said_to_have_left(tmp_path):
    """The sites permit updates without noise, and every one of them fails."""
    made = {number: idle(node) for number, node in small_nodes(tmp_path / "nodes", private=False).items()}
    with pytest.raises(FederationError):
        kept_run(tmp_path, made, mechanism=None)
    facts = read_facts(tmp_path)
    assert facts.is_whole
    report_items = assess_items(facts)
    all_sentences = " ".join(
        [write_headline(facts), *write_summary(facts), *report_items[0].evidence, *report_items[4].evidence]
    )
    assert write_headline(facts) == "Nothing left 3 sites, by their own logs"
    assert write_summary(facts)[0] == "What left: nothing, by the sites' logs that are here."
    assert report_items[0].evidence == ["Nothing left, by the sites' logs that are here; the plan has no noise."]
    assert not any(words in all_sentences for words in ("Updates left", "had no noise", "at epsilon"))
    assert "Nothing left 3 sites" in page_of(facts)


def test_what_was_only_charged_for_did_not_leave_and_what_was_sent_again_did(tmp_path):
    """A node is killed between its ledger and its log, twice; one of the messages it sends later after all."""
    kept_run(tmp_path, small_nodes(tmp_path / "nodes"))
    (own,) = (site for site in read_facts(tmp_path).sites if site.name == "a")
    before, last = own.sent_bytes, own.releases[-1]
    assert before == sum(entry["bytes"] for entry in own.releases)

    def site():
        return custody_of(tmp_path / "nodes" / "a" / "custody", private=True)

    def charge(release, attempt=None):
        known = {"purpose": "update", "attempt": attempt or release[:32]}
        return site().make_charge(last["run"], 3, MECHANISM, last["plan"], release, **known)

    for release in ("0" * 64, "1" * 64):
        site().ledger.charge(charge(release), None)
    site().charge(Release(charge("1" * 64), 10))
    site().charge(Release(charge(last["release"], last["id"]), last["bytes"]))
    facts = read_facts(tmp_path)
    (own,) = (site for site in facts.sites if site.name == "a")
    assert facts.verification.passed
    assert (facts.sent_count, facts.unsent_count, own.sent_bytes) == (10, 1, before + 10 + last["bytes"])
    more = "1 more was charged for by nodes that were killed, and may never have left"
    assert write_headline(facts).startswith("10 releases of 3 sites, at epsilon")
    assert write_summary(facts)[0].startswith("What left: 10 releases of")
    assert write_summary(facts)[0].endswith(f"{more}.")
    assert f"{more}." in assess_items(facts)[5].evidence
    page = page_of(facts)
    assert f"Releases, 10 in all. {more}<" in page
    assert page.count("update, charged for") == 2
    (tmp_path / "nodes").rename(tmp_path / "elsewhere")
    assert write_summary(read_facts(tmp_path))[0] == "What left: not known. No site's log is here."


def test_noise_of_the_server_protects_no_single_record_and_is_not_nothing(tmp_path):
    """The run's own files alone know of it."""
    kept_run(tmp_path, small_nodes(tmp_path / "nodes", private=False), mechanism=None, rounds=1)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"client_epsilon": 7.5}))
    facts = read_facts(tmp_path)
    report_items = assess_items(facts)
    assert write_headline(facts).endswith("without noise: no epsilon holds for single records")
    assert "none for single records" in write_summary(facts)[1]
    assert report_items[0].evidence == [
        "Updates left without noise: no epsilon holds for single records.",
        "Of whole nodes, see item 3.",
    ]
    assert (
        report_items[2]
        .evidence[-1]
        .startswith("By the run's own files, whole nodes are protected by noise of the server")
    )


def test_the_data_flow_shows_the_measures_that_left_and_claims_no_machines(tmp_path):
    make_run(tmp_path / "run", metrics=make_metrics_mechanism(MECHANISM, 20.0))
    page = page_of(read_facts(tmp_path / "run"))
    assert "Coded updates and noised measures alone go to the server" in page
    assert "each of 3 sites, on one machine here" in page
    assert "own machine" not in page
    without_measures = draw_data_flow(3, noised=True)
    assert "Coded updates alone go to the server" in without_measures
    assert "machine" not in without_measures
    assert "measures" not in without_measures


def test_a_plan_without_noise_by_which_nothing_left_after_a_run_with_noise(tmp_path):
    both = {"without_differential_privacy": True}
    kept_run(tmp_path / "first", small_nodes(tmp_path / "nodes", every=both), rounds=1)
    made = {number: idle(node) for number, node in small_nodes(tmp_path / "nodes", every=both).items()}
    with pytest.raises(FederationError):
        kept_run(tmp_path, made, mechanism=None)
    facts = read_facts(tmp_path)
    assert facts.is_whole
    assert write_headline(facts).startswith("3 releases of 3 sites, at epsilon")
    assert write_summary(facts)[1].endswith("What left is of other runs, and had noise.")
    assert assess_items(facts)[0].evidence[0].startswith("Nothing left without noise")
