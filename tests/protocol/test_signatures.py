"""A server's log of real sites: each update in it is signed by the key that its site was admitted with."""

import base64
import hashlib
import json
import shutil

import pytest
from audited_run import Chain
from custodies import SERVER

from fedglm.audit.records.checks import select_failed
from fedglm.audit.verify import server_records
from fedglm.audit.verify.verification import verify
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.protocol.signatures import sign_train_reply

pytestmark = pytest.mark.usefixtures("unsynced")

FIRST, SECOND = SigningKey.generate(), SigningKey.generate()


def update(key, number, site="berlin"):
    """Fields of an entry about an update that a site signed."""
    blob, words = f"update {number}".encode(), {"nonce": "a" * 16, "log": f"{number}:{'b' * 32}"}
    measures = {"loss": 0.5, "metric": 0.9, "count": 20}
    signature = sign_train_reply(key, words, "r", number, blob, measures)
    return {
        "run": "r", "round": number, "site": site, "release": hashlib.sha256(blob).hexdigest(), "bytes": len(blob),
        "nonce": words["nonce"], "anchor": words["log"], "measures": measures,
        "signature": base64.b64decode(signature).hex(),
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder with a server's log of eight updates; in the middle the site came back with another key."""
    folder = tmp_path_factory.mktemp("server")
    path = folder / "audit" / "log.sqlite"
    path.parent.mkdir()
    SignedLog.create(path, SERVER, role="server", name="server")
    with SignedLog(path, SERVER).writing() as put:
        put("begun", {"run": "r", "round": 0})
        for start, key in ((1, FIRST), (5, SECOND)):
            put("admitted", {"run": "r", "site": "berlin", "key": key.public.hex})
            for number in range(start, start + 4):
                put("accepted", update(key, number))
    return folder


IN_PROCESSES, IN_ONE = pytest.param(1, id="in processes"), pytest.param(10_000, id="in one")
BOTH_WAYS = pytest.mark.parametrize("changed", [IN_PROCESSES, IN_ONE], indirect=True)
"""Where pieces meet and are put together is seen in two tests; in the others processes add but their start."""
IN_ONE_AT_LEAST = pytest.mark.parametrize(
    "changed", [pytest.param(1, id="in processes", marks=pytest.mark.slow), IN_ONE], indirect=True
)


@pytest.fixture
def changed(folder, tmp_path, monkeypatch, request):
    """Changes the entry about an update, by the server, which has the key; returns what is said of the updates."""
    monkeypatch.setattr(server_records, "_PIECE", request.param)
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "audit" / "log.sqlite"

    def change(*numbers, **fields):
        chain = Chain(path)
        for place, text in enumerate(chain.texts):
            whole = json.loads(text)
            if whole["kind"] == "accepted" and whole["round"] in numbers:
                chain.texts[place] = canonical_json({**whole, **fields}).decode()
        chain.write(chain=True, key=SERVER)
        (check,) = [check for check in verify(path.parent.parent).checks if check.name == "updates"]
        return check.passed, check.detail

    return change


@BOTH_WAYS
def test_updates_signed_by_the_key_of_their_time_are_held(changed):
    assert changed() == (True, "8 taken, each signed by its site")


@IN_ONE_AT_LEAST
@pytest.mark.parametrize(
    "fields", [{"release": "c" * 64}, {"anchor": "6:" + "c" * 32}, {"nonce": "c" * 16}, {"measures": None},
               {"signature": "c" * 128}, {"signature": None}]
)  # fmt: skip
def test_an_update_that_is_changed_is_named(changed, fields):
    passed, detail = changed(6, **fields)
    assert not passed
    # Entry 1 opens the log, 2 begins the run, 3 and 8 admit the site.
    assert detail.startswith("entry 10: the update of berlin in round 6 is not signed by it")


@IN_ONE_AT_LEAST
def test_a_signature_by_the_key_that_the_site_had_before_does_not_count(changed):
    assert changed(6, **update(FIRST, 6)) == (False, "entry 10: the update of berlin in round 6 is not signed by it")


@IN_ONE_AT_LEAST
def test_an_update_of_nobody_is_named(changed):
    passed, detail = changed(3, site="bonn")
    assert (passed, detail) == (False, "entry 6: an update of bonn, which was not admitted before")


def test_an_update_after_its_site_was_revoked_is_named(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "run")
    path = tmp_path / "run" / "audit" / "log.sqlite"
    with SignedLog(path, SERVER).writing() as put:
        put("absent", {"run": "r", "round": 9, "site": "bonn"})
        put("revoked", {"run": "r", "round": 9, "site": "berlin"})
    assert updates_of(tmp_path / "run")[0]
    with SignedLog(path, SERVER).writing() as put:
        put("accepted", update(SECOND, 10))
    expected = (False, "entry 15: an update of berlin, which was revoked before")
    assert updates_of(tmp_path / "run") == expected


def updates_of(folder):
    (check,) = [check for check in verify(folder).checks if check.name == "updates"]
    return check.passed, check.detail


@BOTH_WAYS
def test_the_first_of_several_is_named(changed):
    assert changed(2, 7, release="c" * 64)[1].startswith("entry 5: ")


def test_all_of_it_holds_but_that_the_sites_are_not_here(folder):
    assert [check.name for check in select_failed(verify(folder).checks)] == []
