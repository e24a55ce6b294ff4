"""An auditor is shown records that prove nothing, for something is not there or is not what was signed: never whole."""

import json
import shutil

import pytest
from audited_run import Chain, make_run
from command_line import run_here
from custodies import SERVER, custody
from omitted_records import contents_of, packed, signed

from fedglm.audit.bundle.export import export_bundle
from fedglm.audit.verify.verification import verify as verified
from fedglm.privacy.custody.site_log import CustodyLog, Release
from fedglm.privacy.custody.transaction import ReleaseTransaction
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.policy.policy_file import load_policy, sign_policy
from fedglm.privacy.policy.run_plan import SignedPlan
from fedglm.run_folder.rows import to_lines
from fedglm.server.rounds.countersigning import Countersigning

pytestmark = pytest.mark.usefixtures("unrendered", "unsynced")

STRANGER = SigningKey.generate()
NOT_WHOLE = (1, 2, 3)


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """A run with its report."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        folder = make_run(tmp_path_factory.mktemp("record") / "run")
    (folder / "audit" / "report.html").write_text("<html>the report</html>")
    (folder / "audit" / "report.json").write_text("{}")
    return folder


@pytest.fixture
def copy(record, tmp_path):
    shutil.copytree(record, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def contents(record, tmp_path):
    """Of a bundle of the run for an auditor."""
    export_bundle(record, tmp_path / "whole.zip", "auditor", SERVER)
    return contents_of(tmp_path / "whole.zip")


def verify(*arguments):
    return run_here("audit", "verify", *arguments)


# --- bundles

FORGED = {
    "audit/report.html": b"<html>Epsilon is 0.1, and the records are whole.</html>",
    "rounds.jsonl": b'{"round": 1, "uplink_bytes": 1, "downlink_bytes": 1, "nodes_accepted": 1, "nodes_rejected": 0}\n',
    "summary.json": b'{"model_sha256": "aa", "epsilon": 0.1}',
}


@pytest.mark.parametrize("role", ["auditor", "regulator"])
def test_a_bundle_by_any_key_without_a_log(tmp_path, role):
    said = verify(packed(signed(FORGED, STRANGER, role), tmp_path / "forged.zip")).line()
    assert "holds no log" in said


@pytest.mark.parametrize("key", [SERVER, STRANGER], ids=["by the owner", "by a stranger"])
def test_a_real_bundle_without_its_log(tmp_path, contents, key):
    of_server = {name: text for name, text in contents.items() if not name.startswith("audit/log.")}
    assert verify(packed(signed(of_server, key, "auditor"), tmp_path / "b.zip")).code in NOT_WHOLE
    of_any = {name: text for name, text in contents.items() if "/log." not in name}
    assert "holds no log" in verify(packed(signed(of_any, key, "auditor"), tmp_path / "b.zip")).line()


def test_a_bundle_signed_again_by_a_stranger(tmp_path, contents):
    changed = {**contents, "audit/report.html": FORGED["audit/report.html"]}
    said = verify(packed(signed(changed, STRANGER, "auditor"), tmp_path / "b.zip"))
    assert said.code == 3
    assert "signs no log of its owner's" in " ".join(said.out.split())


@pytest.mark.parametrize("key", [SERVER, STRANGER], ids=["by the owner", "by a stranger"])
def test_forged_lines_of_a_log(tmp_path, contents, key):
    name = "nodes/a/custody/log.jsonl"
    changed = {**contents, name: contents[name].replace(b'"release"', b'"refused"')}
    assert changed[name] != contents[name]
    assert verify(packed(signed(changed, key, "auditor"), tmp_path / "b.zip")).code == 1


def test_a_report_for_the_public_is_no_record(tmp_path, record):
    export_bundle(record, tmp_path / "public.zip", "public", SERVER)
    said = verify(tmp_path / "public.zip")
    assert said.code == 3
    assert "the report alone" in " ".join(said.out.split())


def test_records_in_a_bundle_that_calls_itself_a_report(tmp_path, contents):
    assert "none may" in verify(packed(signed(contents, SERVER, "public"), tmp_path / "b.zip")).line()


# --- folders

LEFT_OUT = ("audit/log.sqlite", "rounds.jsonl", "summary.json", "nodes/a/custody")
WITH_MORE = ("nodes", "nodes/a")
"""Of which `nodes/a/custody` is a part."""


@pytest.mark.parametrize("name", [*LEFT_OUT, *(pytest.param(name, marks=pytest.mark.slow) for name in WITH_MORE)])
def test_a_run_of_which_something_is_left_out(copy, name):
    path = copy / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert verify(copy).code in NOT_WHOLE
    assert run_here("audit", "report", copy).code in NOT_WHOLE


def test_losses_of_another_run(copy):
    """Whose traffic is the same: a model that learned nothing is passed off for one that did."""
    rows = [json.loads(line) for line in (copy / "rounds.jsonl").read_text().splitlines()]
    (copy / "rounds.jsonl").write_text(to_lines([{**row, "loss": 0.01, "accuracy": 0.99} for row in rows]))
    assert verify(copy).code == 1


def test_a_summary_that_tells_less_epsilon_than_the_rounds(copy):
    rows = [json.loads(line) for line in (copy / "rounds.jsonl").read_text().splitlines()]
    summary = json.loads((copy / "summary.json").read_text())
    for change in ({"rounds": len(rows) + 1}, {"uplink_bytes": 1}, {"epsilon": 0.1}):
        (copy / "summary.json").write_text(json.dumps({**summary, **change}))
        assert verify(copy).code == 1


def test_a_site_that_is_held_to_a_run_in_which_it_took_no_part(record, tmp_path):
    """Another federation's: it has never heard of the site."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        patch.setattr("audited_run.SITES", "xyz")
        other = make_run(tmp_path / "other" / "run")
    said = verify(record / "nodes" / "a", "--server", other)
    assert said.code == 3
    assert "no log of a server here admits it" in " ".join(said.out.split())


def test_the_log_in_a_run_s_folder_is_looked_at_whatever_its_sites_are_held_to(record, copy):
    chain = Chain(copy / "audit" / "log.sqlite")
    chain.texts = chain.texts[:-1]
    chain.write(chain=True)
    assert verify(copy, "--server", record).code == 1


def test_an_older_policy_in_the_place_of_the_one_in_force(copy):
    """It was signed by the site once, too: what it permits is not what was permitted."""
    folder = copy / "nodes" / "a" / "custody"
    older = {name: (folder / name).read_bytes() for name in ("policy.toml", "policy.toml.sig")}
    key = SigningKey.load(folder / "site.key")
    newer = load_policy(folder / "policy.toml", key.public).model_copy(update={"epsilon": 60.0})
    (folder / "policy.toml").write_text(newer.to_toml())
    sign_policy(folder / "policy.toml", key)
    site = ReleaseTransaction(Ledger(folder / "ledger.sqlite"), CustodyLog(folder / "log.sqlite", key))
    site.activate_policy(load_policy(folder / "policy.toml", key.public))
    assert verify(copy).code == 0
    for name, content in older.items():
        (folder / name).write_bytes(content)
    assert verify(copy).code == 3


def test_a_gate_in_front_of_a_run_of_which_something_is_left_out(copy, tmp_path):
    (tmp_path / "rules.toml").write_text("")
    for name in ("rounds.jsonl", "summary.json"):
        (copy / name).unlink()
        said = run_here("audit", "report", copy, "--policy", tmp_path / "rules.toml")
        assert said.code == 1
        assert "not met" in said.out


def test_a_site_made_up_from_the_server_s_log(tmp_path):
    """Without noise and seals, a server's log has nothing of a site's but hashes, which whoever reads it can copy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        patch.setattr(Countersigning, "seal", lambda *_: None)
        run = make_run(tmp_path / "run", mechanism=None)
    record = verified(run).server
    folder = run / "nodes" / "a" / "custody"
    shutil.rmtree(folder)
    site = custody(folder)
    signed_plan = SignedPlan.from_text(record.rare_entries("announced")[0]["signed"])
    site.log.record_plan(signed_plan, ["codecs"])
    for taken in [taken for taken in record.scan.accepted if taken.site == "a"]:
        charge = site.make_charge(
            taken.run, taken.round, None, signed_plan.plan.sha256, taken.release.hex(), purpose="update"
        )
        site.charge(Release(charge, taken.size, 1, signed_plan.plan.spec.codec, ["size"]))
    assert verify(run).code == 3
    found = json.loads(verify(run, "--json").out)
    assert (found["verdict"], found["held"]) == ("open", True)  # nothing contradicts it


def test_an_update_with_noise_that_was_charged_for_another_round(tmp_path):
    """Equal bytes may be fresh noise: of as many rounds as the server took one, each has a row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        patch.setattr(Countersigning, "seal", lambda *_: None)
        run = make_run(tmp_path / "run")
    folder = run / "nodes" / "a" / "custody"
    first, second, _ = (taken for taken in verified(run).server.scan.accepted if taken.site == "a")
    chain = Chain(run / "audit" / "log.sqlite")
    texts = ((text, f'"bytes":{second.size},' if second.release.hex() in text else "\n") for text in chain.texts)
    sized = (text.replace(size, f'"bytes":{first.size},') for text, size in texts)  # noise decides how long it is
    chain.texts = [text.replace(second.release.hex(), first.release.hex()) for text in sized]
    chain.write(chain=True, key=SERVER)
    log = SignedLog(folder / "log.sqlite", SigningKey.load(folder / "site.key"))
    of_round = {"run": second.run, "round": second.round, "release": first.release.hex(), "bytes": first.size}
    log.append("resent", of_round)
    said = verify(run)
    assert said.code == 1
    assert "a release of" in " ".join(said.out.split())
