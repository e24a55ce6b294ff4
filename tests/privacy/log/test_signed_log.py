"""The signed log: what it takes, what it keeps through kills and rivals, and which changes of it are noticed."""

import json
import multiprocessing
import os
import signal
import sqlite3
import time

import pytest
from ledgers import sha256, tamper

from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.chained_file import Head, compute_chain_hash
from fedglm.privacy.log.entries import KINDS, make_entry, read_entry
from fedglm.privacy.log.merkle import compute_root, hash_leaf
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.log.tree_head import SignedTreeHead

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
FORK = multiprocessing.get_context("fork")
REFUSED = {"run": "run-1", "round": 1, "rule": "codecs"}

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "custody" / "log.sqlite"


@pytest.fixture
def log(path):
    return SignedLog.create(path, KEY, role="site", name="berlin")


@pytest.fixture
def three(path, log):
    """Path of a log with three entries after its first."""
    for number in (1, 2, 3):
        log.append("refused", {**REFUSED, "round": number})
    return path


def test_what_is_written_is_read_by_everybody_and_signed_by_its_owner(path, log):
    log.append("refused", REFUSED)
    seen = []
    again = SignedLog(path, on_entry=seen.append)
    assert [found["kind"] for found in seen] == ["opened", "refused"]
    assert (again.owner["name"], again.owner["role"], again.key) == ("berlin", "site", KEY.public)
    assert (again.head, again.contains(log.head), again.contains(Head(2, "0" * 64))) == (log.head, True, False)
    signed = again.read_tree_head()
    assert signed.is_by(KEY.public)
    assert not signed.is_by(OTHER.public)
    assert signed.root == compute_root(map(hash_leaf, again.entries())).hex()
    assert path.stat().st_mode & 0o777 == 0o600


def test_only_its_owner_writes(path, log):
    with pytest.raises(LogError, match="open to be read alone"):
        SignedLog(path).append("refused", REFUSED)
    with pytest.raises(LogError, match="not written with the key of its owner"):
        SignedLog(path, OTHER).append("refused", REFUSED)
    assert log.head.rows == 1


def test_a_new_key_goes_on_and_the_old_one_does_not(path, log):
    renewed = SignedLog(path, OTHER)
    renewed.append("key", {"key": OTHER.public.hex, "previous": KEY.public.hex, "vouched": None})
    renewed.append("refused", REFUSED)
    assert SignedLog(path).key == OTHER.public
    with pytest.raises(LogError, match="key of its owner"):
        log.append("refused", REFUSED)


def test_all_of_a_block_is_written_or_nothing(log):
    def write(second, *, fail=False):
        with log.writing() as put:
            put("refused", REFUSED)
            put("refused", second)
            if fail:
                raise RuntimeError

    with pytest.raises(RuntimeError):
        write(REFUSED, fail=True)
    with pytest.raises(PrivacyError, match="cannot hold that in its field rule"):
        write({**REFUSED, "rule": "Mrs Smith, HIV positive"})
    assert log.head.rows == 1


def test_a_log_is_made_once(path, log):
    with pytest.raises(LogError, match="is there already"):
        SignedLog.create(path, KEY, role="site", name="berlin")
    path.unlink()
    with pytest.raises(LogError, match="a new one would forget what happened"):
        log.append("refused", REFUSED)


# --- what may stand in it


def test_every_kind_refuses_what_is_missing_unknown_or_no_such_thing():
    canary = "canary 4711"
    for kind, fields in KINDS.items():
        for name in fields:
            whole = dict.fromkeys(fields, canary)
            with pytest.raises(PrivacyError, match="cannot hold that in its field"):
                make_entry(1, "2027-01-04T10:00:00+00:00", kind, {**whole, name: {"text": canary}})
            with pytest.raises(PrivacyError, match="missing or unknown fields"):
                make_entry(1, "2027-01-04T10:00:00+00:00", kind, {k: v for k, v in whole.items() if k != name})
        with pytest.raises(PrivacyError, match="unknown fields: note"):
            make_entry(1, "2027-01-04T10:00:00+00:00", kind, {**dict.fromkeys(fields, canary), "note": canary})
    with pytest.raises(PrivacyError, match="no entry is of kind"):
        make_entry(1, "2027-01-04T10:00:00+00:00", "note", {})


def test_texts_of_people_stand_in_names_alone():
    """Of all kinds, the fields that take any text at all: names that people give, none of them from a record."""
    free = {name for fields in KINDS.values() for name, check in fields.items() if check("Müller, 1961, diabetes")}
    assert free == {"name", "run", "site", "data_set", "software", "tls"}


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"kind":["refused"],"number":1,"time":"2027-01-04T10:00:00+00:00"}',
        b'{"kind":"refused","number":1,"round":1,"rule":"codecs","run":"r","run":"s","time":"2027-01-04T10:00:00+00:00"}',
        b'{"kind":"refused", "number":1,"round":1,"rule":"codecs","run":"r","time":"2027-01-04T10:00:00+00:00"}',
        b'{"kind":"refused","number":1,"round":1.0,"rule":"codecs","run":"r","time":"2027-01-04T10:00:00+00:00"}',
        b'{"kind":"refused","number":1,"round":true,"rule":"codecs","run":"r","time":"2027-01-04T10:00:00+00:00"}',
        b'{"kind":"refused","number":1,"round":NaN,"rule":"codecs","run":"r","time":"2027-01-04T10:00:00+00:00"}',
        b'{"kind":"refused","number":2,"round":1,"rule":"codecs","run":"r","time":"2027-01-04T10:00:00+00:00"}',
        b'{"kind":"refused","number":1,"round":1,"rule":"codecs","run":"r","time":"yesterday"}',
        b"[" * 10_000,
        b"\xff",
        b" " * (1 << 18) + b"1",
    ],
)
def test_a_stranger_s_text_is_no_entry(text):
    with pytest.raises(PrivacyError):
        read_entry(text, 1)


# --- tampering


def rechained(path, change):
    """Change the entries and compute the whole chain anew, as who can write the file but has no key can."""
    with sqlite3.connect(path) as database:
        (previous,) = database.execute("SELECT hash FROM origin").fetchone()
        texts = change([text for (text,) in database.execute("SELECT entry FROM entries ORDER BY number")])
        database.execute("DELETE FROM entries")
        for number, text in enumerate(texts, 1):
            previous = compute_chain_hash(previous, text.encode())
            database.execute("INSERT INTO entries VALUES (?, ?, ?)", (number, text, previous))
    database.close()


def renumbered(texts):
    return [read_and_renumber(text, number) for number, text in enumerate(texts, 1)]


def read_and_renumber(text, number):
    return canonical_json({**json.loads(text), "number": number}).decode()


@pytest.mark.parametrize(
    "change",
    [
        lambda texts: [*texts[:2], texts[2].replace('"round":2', '"round":9'), *texts[3:]],
        lambda texts: renumbered(texts[:-1]),
        lambda texts: renumbered([*texts[:1], *texts[2:]]),
        lambda texts: renumbered([texts[0], texts[2], texts[1], texts[3]]),
        lambda texts: renumbered([*texts, texts[-1]]),
        lambda texts: renumbered([*texts, texts[0]]),
        lambda texts: [texts[0].replace(KEY.public.hex, OTHER.public.hex), *texts[1:]],
        lambda _: [],
    ],
    ids=["edit", "cut", "drop", "reorder", "replay", "open-again", "other-key", "empty"],
)
def test_a_chain_that_was_computed_anew_is_not_signed(three, change):
    rechained(three, change)
    with pytest.raises(LogError, match=str(three)):
        SignedLog(three)


@pytest.mark.parametrize(
    "statements",
    [
        ("DELETE FROM checkpoint",),
        ("INSERT INTO checkpoint SELECT * FROM checkpoint",),
        ("UPDATE checkpoint SET size = size - 1",),
        ("UPDATE checkpoint SET made = '2020-01-01T00:00:00+00:00'",),
        ("UPDATE checkpoint SET signature = upper(signature)",),
        ("UPDATE checkpoint SET signature = NULL",),
        ("DELETE FROM entries WHERE number = 4",),
        ("UPDATE entries SET entry = replace(entry, 'codecs', 'plans')",),
        ("DROP TABLE checkpoint",),
        ("CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries WHERE number = new.number; END",),
    ],
    ids=lambda statements: statements[0][:50],
)
def test_a_changed_file_is_refused_on_opening(three, statements):
    tamper(three, *statements)
    with pytest.raises(LogError, match=str(three)):
        SignedLog(three)


def test_an_old_copy_is_noticed_by_who_kept_an_anchor(path, log):
    old = path.read_bytes()
    log.append("refused", REFUSED)
    anchor = log.head
    path.write_bytes(old)
    with pytest.raises(LogError, match="gone or changed"):
        log.append("refused", REFUSED)
    forked = SignedLog(path, KEY)
    forked.append("refused", {**REFUSED, "round": 2})
    assert not forked.contains(anchor)


# --- checkpoints


def test_a_checkpoint_is_of_one_log_one_size_one_root_and_one_owner(log):
    signed = log.read_tree_head()
    seal = signed.countersign(OTHER)
    assert signed.is_countersigned(OTHER.public, seal)
    assert not signed.is_countersigned(KEY.public, seal)
    assert not signed.is_countersigned(OTHER.public, signed.signature), "an owner's signature is no countersignature"
    for change in ({"log": sha256("x")}, {"size": 2}, {"root": sha256("x")}, {"made": "2027-01-04T10:00:00+00:00"}):
        other = SignedTreeHead(**{**signed.__dict__, **change})
        assert not other.is_by(KEY.public)
        assert not other.is_countersigned(OTHER.public, seal)


@pytest.mark.parametrize(
    "change", [{"size": -1}, {"size": "1"}, {"root": "x"}, {"signature": "00"}, {"made": "now"}, {"root": None}]
)
def test_a_stranger_s_checkpoint_is_held_to_its_form(log, change):
    signed = log.read_tree_head()
    with pytest.raises(PrivacyError, match="no checkpoint"):
        SignedTreeHead.from_fields(signed.log, {**signed.to_fields(), **change})
    assert SignedTreeHead.from_fields(signed.log, signed.to_fields()) == signed


# --- kills and rivals


def test_rivals_write_one_after_the_other(path, log):
    def write(first):
        rival = SignedLog(path, KEY)
        for number in range(10):
            rival.append("refused", {**REFUSED, "round": first + number})

    rivals = [FORK.Process(target=write, args=(100 * number,)) for number in range(4)]
    for rival in rivals:
        rival.start()
    for rival in rivals:
        rival.join()
    assert [rival.exitcode for rival in rivals] == [0] * 4
    assert log.head.rows == 41
    assert SignedLog(path).head == log.head


def test_whenever_it_is_killed_what_it_said_is_written_is_there(path, log):
    for turn in range(8):
        told = path.with_suffix(".told")
        told.write_text("")

        def write(turn=turn, told=told):
            own = SignedLog(path, KEY)
            with told.open("a") as file:
                for number in range(10_000):
                    own.append("refused", {**REFUSED, "run": f"run-{turn}", "round": number})
                    print(number, file=file, flush=True)

        victim = FORK.Process(target=write)
        victim.start()
        while not told.read_text():
            time.sleep(0.005)
        time.sleep(0.02 * turn)
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        seen = []
        SignedLog(path, on_entry=seen.append)
        written = [found["round"] for found in seen if found.get("run") == f"run-{turn}"]
        said = len(told.read_text().splitlines())
        assert written == list(range(len(written)))
        assert said <= len(written) <= said + 1
    assert log.head.rows == SignedLog(path).head.rows
