"""`fedglm audit verify`: a good run is verified, and whatever is changed in its records is found and named."""

import os
import random
import re
import shutil

import pytest
from audited_run import ROUNDS, SITES, Mutations, make_run
from custodies import SERVER

from fedglm.privacy.audit_checks import failed
from fedglm.privacy.audit_verify import verify
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys import SigningKey

NAMED = re.compile(r"\b(entry|entries|row|round|rounds)\b.*\d|policy|model|key|beginning|signature|read|signed")


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        yield


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
