"""`fedglm audit verify`: a good run is verified, and whatever is changed in its records is found and named."""

import json
import os
import random
import re
import shutil

import pytest
from audited_run import ROUNDS, SITES, Chain, Mutations, make_run
from custodies import SERVER
from ledgers import tamper

from fedglm.privacy.audit_checks import failed
from fedglm.privacy.audit_verify import verify
from fedglm.privacy.canonical import canonical_json
from fedglm.privacy.custody import establish
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys import SigningKey
from fedglm.privacy.policy import Policy
from fedglm.privacy.signed_log import SignedLog

pytestmark = pytest.mark.usefixtures("unsynced")

NAMED = re.compile(r"\b(entry|entries|row|round|rounds)\b.*\d|policy|model|key|beginning|signature|read|signed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run; beside it, in `old`, its folder as it was after the second round."""
    home = tmp_path_factory.mktemp("audited")
    make_run(home / "run")
    return home / "run"


def test_a_run_as_it_was_is_verified(run):
    found = verify(run)
    assert failed(found.checks) == []
    assert {check.subject for check in found.checks} == {"server", *SITES}
    open_checks = {(check.subject, check.name) for check in found.checks if check.held is None}
    assert open_checks == {("server", "updates")}
    said = {(check.subject, check.name): check.said for check in found.checks}
    assert said["a", "ledger"] == f"{ROUNDS} rows, each of which the log shows"
    assert said["a", "releases received"].startswith(f"{ROUNDS} updates are those")
    assert re.search(r"PRV \d+\.\d+, PLD \d+\.\d+", said["a", "epsilon"])


def test_a_site_is_verified_alone_and_against_the_server(run):
    for folder in (run / "nodes" / "a", run / "nodes" / "a" / "custody"):
        alone, against = verify(folder), verify(folder, server=run)
        assert alone.held
        assert against.held
        assert "seen by server" not in {check.name for check in alone.checks}
        assert "seen by server" in {check.name for check in against.checks if check.held}


def test_a_key_that_is_known_from_elsewhere_must_sign(run):
    own = SigningKey.load(run / "nodes" / "a" / "custody" / "site.key").public
    assert verify(run, keys=[own, SERVER.public]).held
    (wrong,) = failed(verify(run, keys=[SigningKey.generate().public]).checks)
    assert "signs none of the logs" in wrong.said


def test_a_folder_without_a_log_is_named(tmp_path):
    with pytest.raises(PrivacyError, match="holds no log"):
        verify(tmp_path)


def mutations(run, work, count):
    """What was not found, or found and not named, of so many changes."""
    hands, missed = Mutations(run, work), []
    for seed in range(count):
        done = hands.apply(random.Random(seed))  # noqa: S311 - repeatable on purpose
        try:
            wrong = failed(verify(work).checks)
        except PrivacyError as exc:
            wrong = [str(exc)]
            named = True
        else:
            named = any(NAMED.search(check.said) for check in wrong)
        if not wrong or not named:
            missed.append((seed, done, wrong))
    return missed


def test_whatever_is_changed_is_found_and_named(run, tmp_path):
    assert mutations(run, tmp_path / "copy", 150) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_thousand_changes_are_found_and_named(run, tmp_path):
    assert mutations(run, tmp_path / "copy", int(os.environ.get("FEDGLM_MUTATIONS", "10000"))) == []


def test_the_hands_change_nothing_where_they_are_idle(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    assert verify(tmp_path / "copy").held


# --- what no key, or the wrong one, must be enough for


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def wrong(folder, **options):
    return {(check.subject, check.name) for check in failed(verify(folder, **options).checks)}


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
    establish(copy / "nodes" / "b" / "custody", Policy(data_set="z"), name="z")
    assert ("server", "sites") in wrong(copy)


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
