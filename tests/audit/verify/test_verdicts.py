"""The verdict of a verification, in words, in JSON and as exit code; and sites that are compared with several runs."""

import json
import shutil

import pytest
from audited_run import SITES, Chain, kept_run, small_nodes
from custodies import SERVER, run_plan

from fedglm.audit.bundle.export import export_bundle
from fedglm.audit.records.checks import Scope, Verdict, select_failed, select_missing
from fedglm.audit.verify.verification import verify
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.policy.run_plan import SignedPlan

pytestmark = pytest.mark.usefixtures("unsynced")


@pytest.fixture
def verify_command(fedglm):
    """Runs the command; returns exit code, verdict, scope and printed words."""

    def verify_command(*arguments):
        result, as_json = fedglm("audit", "verify", *arguments), fedglm("audit", "verify", *arguments, "--json")
        assert result.code == as_json.code
        tree = json.loads(as_json.out)
        return result.code, tree["verdict"], tree["scope"], " ".join(result.out.split())

    return verify_command


def test_whole_alone_open_and_wrong(verify_command, copy):
    code, verdict, scope, words = verify_command(copy)
    assert (code, verdict, scope) == (0, "whole", "run")
    assert "verified: " in words
    assert "whose keys these are, the records alone say" in words
    code, verdict, scope, words = verify_command(copy / "nodes" / "a", "--server", copy)
    assert (code, verdict, scope) == (0, "whole", "site and server")
    code, verdict, scope, words = verify_command(copy / "nodes" / "a")
    assert (code, verdict, scope) == (0, "alone", "site")
    assert "verified alone" in words
    (copy / "summary.json").unlink()
    code, verdict, scope, words = verify_command(copy)
    assert (code, verdict, scope) == (3, "open", "run")
    assert "open, not whole" in words
    assert "there is no summary.json" in words
    (copy / "nodes" / "a" / "custody" / "policy.toml").unlink()
    code, verdict, scope, words = verify_command(copy)
    assert (code, verdict) == (1, "wrong")


def test_a_key_that_is_known_is_worth_a_word(verify_command, run):
    words = verify_command(run, "--key", SERVER.public.hex)[-1]
    assert "the records alone say" not in words


def test_a_server_of_real_sites_has_its_own_records_alone(verify_command, tmp_path):
    """Theirs are with them; those of one machine are all here, or missing."""
    plan, key = SignedPlan.sign(run_plan("0" * 64, run="r"), SERVER), SigningKey.generate().public.hex
    for name, of_site in (("real", key), ("simulated", None)):
        path = tmp_path / name / "audit" / "log.sqlite"
        path.parent.mkdir(parents=True)
        with SignedLog.create(path, SERVER, role="server", name="server").writing() as put:
            put("announced", {"run": "r", "plan": plan.plan.sha256, "signed": plan.to_text()})
            put("begun", {"run": "r", "round": 0})
            put("admitted", {"run": "r", "site": "berlin", "key": of_site})
            put("finished", {"run": "r", "rounds": 0, "model": "e" * 64})
        (tmp_path / name / "summary.json").write_text(json.dumps({"model_sha256": "e" * 64}))
    assert verify_command(tmp_path / "real")[:2] == (3, "open")  # which have a done.json
    shutil.copy(tmp_path / "real" / "summary.json", tmp_path / "real" / "done.json")
    code, verdict, scope, words = verify_command(tmp_path / "real")
    assert (code, verdict, scope) == (0, "alone", "server")
    assert "the server's records alone" in words
    assert "1 of 1 that took part are not here: berlin" in words
    assert verify_command(tmp_path / "simulated")[:3] == (3, "open", "server")


def test_a_run_without_its_plan_or_of_other_rounds(copy):
    chain = Chain(copy / "audit" / "log.sqlite")
    of_kind = {json.loads(text)["kind"]: place for place, text in enumerate(chain.texts)}
    texts = list(chain.texts)
    chain.texts[of_kind["finished"]] = texts[of_kind["finished"]].replace('"rounds":3', '"rounds":4')
    chain.write(chain=True, key=SERVER)
    assert "it ends the run after 4 rounds, and the log shows 3" in str(select_failed(verify(copy).checks))
    chain.texts = [text for text in texts if '"kind":"announced"' not in text]
    chain.numbered()
    chain.write(chain=True, key=SERVER)
    assert "no plan was announced" in str(select_missing(verify(copy).checks))


# --- several runs


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two runs of one server and the same sites."""
    home = tmp_path_factory.mktemp("two")
    for name in ("first", "second"):
        kept_run(home / name, small_nodes(home / "nodes"), rounds=1)
    return home


def test_a_site_is_held_to_all_runs_in_which_it_took_part(two, tmp_path):
    site = two / "nodes" / "a"
    verification = verify(site, server=[two / "first", two / "second"])
    assert (verification.verdict, verification.scope) == (Verdict.WHOLE, Scope.SITE_AND_SERVER)
    assert {check.subject for check in verification.checks} == {"server first", "server second", "a"}
    sealed = [check.detail for check in verification.checks if check.name == "sealed"]
    assert [detail.partition(":")[0] for detail in sealed] == ["server first", "server second"]
    export_bundle(two / "first", tmp_path / "b.zip", "auditor", SERVER)
    verification = verify(site, server=[tmp_path / "b.zip", two / "second"])
    assert verification.verdict is Verdict.WHOLE
    assert "server b.zip" in {check.subject for check in verification.checks}


def test_a_run_s_folder_is_held_to_other_runs_too(two):
    shutil.copytree(two / "nodes", two / "first" / "nodes", dirs_exist_ok=True)
    verification = verify(two / "first", server=two / "second")
    assert (verification.verdict, verification.scope) == (Verdict.WHOLE, Scope.RUN)
    assert {check.subject for check in verification.checks} == {"server", "server second", *SITES}


def test_two_logs_of_one_run_are_reported(two, tmp_path):
    """The server shows one log to a site, and another to others."""
    shutil.copytree(two / "second", tmp_path / "fork")
    chain = Chain(tmp_path / "fork" / "audit" / "log.sqlite")
    chain.texts = chain.texts[:-2]
    chain.write(chain=True, key=SERVER)
    log = SignedLog(tmp_path / "fork" / "audit" / "log.sqlite", SERVER)
    log.append("admitted", {"run": json.loads(chain.texts[2])["run"], "site": "z", "key": None})
    verification = verify(two / "nodes" / "a", server=[two / "second", tmp_path / "fork"])
    assert "neither is the beginning of the other" in str(select_failed(verification.checks))
