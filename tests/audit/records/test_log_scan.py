"""Reading a whole log quickly gives what reading it field by field gives, in however many pieces."""

import contextlib
import hashlib
import json
import os
import re
import sqlite3
import tempfile
from pathlib import Path

import pytest
from audited_run import Chain
from custodies import MECHANISM
from hypothesis import given
from hypothesis import strategies as st
from killed_work import killed

from fedglm.audit.records import log_scan, release_entries
from fedglm.audit.records.checks import select_failed
from fedglm.audit.records.log_scan import scan_log
from fedglm.audit.records.release_entries import EntryReader, ReleaseEntry
from fedglm.audit.verify.verification import verify
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.charges import Charge, LedgerRow
from fedglm.privacy.log.entries import make_entry, read_entry
from fedglm.privacy.log.signed_log import SignedLog

pytestmark = pytest.mark.usefixtures("unsynced")

TIME = "2027-01-04T10:00:00+00:00"
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)
WHOLE = st.integers(0, 2**63 - 1) | st.integers(0, 20)
EPSILONS = st.none() | st.floats(0, 60) | st.floats(allow_nan=False, allow_infinity=False) | st.integers(0, 9)
NAMES = st.text(min_size=1, max_size=12).filter(str.isprintable) | st.sampled_from(['"%d{', "%s", r"\"", "Köln", "[0]"])
OWN = {"number": st.integers(2, 10**6), "row": WHOLE, "row_hash": HASHES, "release": HASHES, "round": WHOLE,
       "epsilon": EPSILONS, "bytes": WHOLE, "non_zeros": st.none() | WHOLE,
       "time": st.datetimes().map(lambda t: t.isoformat(timespec="seconds") + "+00:00")}  # fmt: skip
IDS = st.binary(min_size=16, max_size=16).map(bytes.hex)
MAYBE = {"id": IDS}
SHARED = {"run": NAMES, "data_set": NAMES, "commitment": HASHES, "plan": HASHES, "policy": HASHES,
          "purpose": st.sampled_from(["update", "metrics"]), "mechanism": st.none() | st.just(MECHANISM.to_fields()),
          "delta": st.none() | st.sampled_from([1e-5, 1e-6]), "codec": st.none() | st.just("topk-sign"),
          "rules": st.lists(st.sampled_from(["size", "metrics"]), max_size=2)}  # fmt: skip


def text_of(kind, shared, own):
    fields = {**shared, **own}
    if kind == "charged":
        fields = {name: value for name, value in fields.items() if name not in ("bytes", "non_zeros", "codec", "rules")}
    number, moment = fields.pop("number"), fields.pop("time")
    return make_entry(number, moment, kind, fields).decode()


KINDS = st.sampled_from(["release", "charged"])
ALIKE = st.builds(
    lambda kind, shared, owns: [text_of(kind, shared, own) for own in owns],
    KINDS, st.fixed_dictionaries(SHARED), st.lists(st.fixed_dictionaries(OWN, optional=MAYBE), min_size=2, max_size=2),
)  # fmt: skip


def parsed(reader, text, number):
    """Return all that a reader makes of a text; None if it is no entry."""
    try:
        result = reader.read(text, number)
    except PrivacyError:
        return None
    if isinstance(result, ReleaseEntry):
        return (result.common.fields, result.common.key, *result[1:])
    return result


def number_of(text):
    return json.loads(text)["number"]


@given(ALIKE)
def test_an_entry_like_one_before_says_the_same_as_one_read_alone(texts):
    reader, number = EntryReader(), number_of(texts[1])
    reader.read(texts[0], number_of(texts[0]))
    assert parsed(reader, texts[1], number) == parsed(EntryReader(), texts[1], number) is not None
    assert parsed(reader, texts[1], number + 1) is None


@given(ALIKE, st.data())
def test_a_text_that_is_none_is_none_after_one_like_it(texts, data):
    first, text = texts
    place = data.draw(st.integers(0, len(text)))
    put = data.draw(st.text('0123456789.eE-+ "{}[],:nulabcdefA\n\x00é\ud7ff', max_size=3) | st.just(text[place:]))
    changed = text[:place] + put + text[place + data.draw(st.integers(0, 3)) :]
    reader, number = EntryReader(), number_of(text)
    reader.read(first, number_of(first))
    assert parsed(reader, changed, number) == parsed(EntryReader(), changed, number)


FIXED = {"number": 7, "row": 5, "row_hash": "a" * 64, "release": "b" * 64, "round": 5, "epsilon": 1.5, "bytes": 20,
         "non_zeros": 3, "time": TIME, "run": "r", "data_set": "d", "commitment": "c" * 64, "plan": "d" * 64,
         "policy": "e" * 64, "purpose": "update", "mechanism": MECHANISM.to_fields(), "delta": 1e-5, "codec": "x",
         "rules": ["size"], "id": "f" * 32}  # fmt: skip
PLAIN = text_of("release", {}, FIXED)
MISSPELLED = [
    ('"row":5', put)
    for put in ('"row":05', '"row":5.0', '"row": 5', '"row":-5', '"row":5e0', '"row":"5"', '"row":true', '"row":null',
                f'"row":{2**63}', f'"row":{10**40}', '"row":5,"row":5', '"row":\u0665')
] + [
    ('"epsilon":1.5', put)
    for put in ('"epsilon":1.50', '"epsilon":15e-1', '"epsilon":01.5', '"epsilon":.5', '"epsilon":NaN',
                '"epsilon":1e400', '"epsilon":1.5000000000000001', '"epsilon":0.00001', '"epsilon":1.',
                '"epsilon":"1.5"')
] + [
    ('"id":"' + "f" * 32, '"id":"' + "f" * 31), ('"id":"' + "f" * 32 + '"', '"id":null'),
    ("a" * 64, "A" * 64), ("b" * 64, "b" * 63), ("b" * 64, "b" * 65), (TIME, TIME.replace("+00:00", "Z")),
    (TIME, TIME.replace("+00:00", "+01:00")), (TIME, TIME + "\\n"), ("{", "{ "), ("}", "}\n"),
    ('"run":"r"', '"run":""'), ('"non_zeros":3', '"non_zeros":-0'), ('"bytes":20,', ""),
    ('"kind":"release"', '"kind":"charged"'),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new"), MISSPELLED)
def test_another_spelling_is_no_entry_after_a_canonical_one(old, new):
    reader = EntryReader()
    assert parsed(reader, PLAIN, 7) is not None
    assert old in PLAIN
    assert parsed(reader, PLAIN.replace(old, new), 7) is None


def test_numbers_that_patterns_do_not_take_are_read_all_the_same():
    reader = EntryReader()
    reader.read(PLAIN, 7)
    for own in ({"epsilon": 2}, {"epsilon": -0.5}, {"epsilon": 1e-7}, {"epsilon": 1e22}, {"bytes": 2**63 - 1}):
        fields = {**FIXED, **own}
        release_entry = reader.read(text_of("release", {}, fields), 7)
        assert (release_entry.epsilon, release_entry.size) == (fields["epsilon"], fields["bytes"])


def test_entries_like_one_before_are_not_parsed_and_others_are(monkeypatch):
    read, made = [], []
    monkeypatch.setattr(
        release_entries, "read_entry", lambda *arguments: read.append(arguments) or read_entry(*arguments)
    )
    monkeypatch.setattr(release_entries.re, "compile", lambda text, make=re.compile: made.append(text) or make(text))
    reader = EntryReader()
    for number in range(2, 200):
        reader.read(text_of("release", {}, {**FIXED, "number": number, "run": "xy"[number % 2]}), number)
    assert len(read) == 2
    for number in range(200, 2200):  # a stranger's, each of another run: a pattern of each would take long
        reader.read(text_of("release", {}, {**FIXED, "number": number, "run": str(number)}), number)
    assert len(read) == 2002
    assert len(made) < 40


@given(st.fixed_dictionaries(SHARED), st.integers(1, 2**40), HASHES, st.integers(1, 2**31 - 1), st.none() | IDS)
def test_a_row_s_text_is_the_ledger_s(shared, number, release, at, attempt):
    own = {name: shared[name] for name in ("run", "data_set", "commitment", "plan", "policy", "purpose")}
    noise = None if shared["mechanism"] is None else MECHANISM
    row = LedgerRow.entry(number, TIME, Charge(**own, round=at, release=release, mechanism=noise, id=attempt)).decode()
    fields = {**FIXED, **shared, "row": number, "release": release, "round": at}
    fields |= {"id": attempt}
    if attempt is None:
        del fields["id"]
    release_entry = EntryReader().read(text_of("release", {}, fields), 7)
    assert release_entry.common.make_row_text(number, release, at, release_entry.id) + TIME + '"}' == row


def test_what_patterns_do_not_take_pushes_none_of_them_out(monkeypatch):
    read = []
    reader = EntryReader()
    reader.read(PLAIN, 7)
    for number in range(8, 40):
        reader.read(text_of("release", {}, {**FIXED, "number": number, "epsilon": 1e-7}), number)
    monkeypatch.setattr(
        release_entries, "read_entry", lambda *arguments: read.append(arguments) or read_entry(*arguments)
    )
    assert reader.read(PLAIN, 7).epsilon == 1.5
    assert read == []


def test_no_release_opens_a_log():
    reader = EntryReader()
    reader.read(PLAIN, 7)
    first = text_of("release", {}, {**FIXED, "number": 1})
    assert parsed(reader, first, 1) is parsed(EntryReader(), first, 1) is None


# --- in pieces, and with the ledger


@pytest.fixture
def custody(copy):
    return copy / "nodes" / "a" / "custody"


def map_here(work, pieces):
    """What `map_in_processes` does, in this process."""
    return (work(*arguments) for arguments in pieces)


@pytest.fixture
def in_this_process(monkeypatch):
    """Pieces are read in this process: that others read them as well is tested with all pieces of a whole log."""
    monkeypatch.setattr(log_scan, "map_in_processes", map_here)


def site_key(custody):
    return SigningKey.load(custody / "site.key")


def test_pieces_say_what_the_whole_says(custody, monkeypatch):
    log, ledger = custody / "log.sqlite", custody / "ledger.sqlite"
    at_once = scan_log(log, ledger)
    assert (at_once.fault, at_once.rows) == ("", 3)
    size = len(at_once.chain)
    for piece in (size - 1, 1, 3):  # the first by other processes, which take long to start
        in_pieces = scan_log(log, ledger, piece)
        monkeypatch.setattr(log_scan, "map_in_processes", map_here)
        assert [group.__dict__ for group in in_pieces.groups.values()] == [g.__dict__ for g in at_once.groups.values()]
        assert (in_pieces.chain, in_pieces.leaves, in_pieces.rare) == (at_once.chain, at_once.leaves, at_once.rare)
        assert (in_pieces.releases, in_pieces.rows, in_pieces.policy_entry) == (
            at_once.releases,
            at_once.rows,
            at_once.policy_entry,
        )
        assert in_pieces.fault == ""


@pytest.mark.usefixtures("in_this_process")
def test_what_is_wrong_in_a_piece_is_named_by_its_entry(custody):
    chain = Chain(custody / "log.sqlite")
    number = next(n for n, text in enumerate(chain.texts, 1) if json.loads(text)["kind"] == "release") + 1
    chain.texts[number - 1] = chain.texts[number - 1].replace('"kind"', '"kimd"')
    chain.write(chain=True, key=site_key(custody))
    for piece in (1, 4, 50_000):
        assert scan_log(custody / "log.sqlite", custody / "ledger.sqlite", piece).fault.startswith(f"entry {number}: ")


@given(
    st.lists(st.tuples(st.sampled_from([None, 1.0, 4.0, 5.0]), st.integers(0, 3)), min_size=1, max_size=12),
    st.integers(0, 14), st.sampled_from(["", "row", "hash"]), st.sampled_from(range(1, 7)),
)  # fmt: skip
def test_any_pieces_say_what_the_whole_says(releases, place, change, piece):
    """Epsilons that fall, releases that are charged for again, and an entry that is damaged, anywhere."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda _: None)
        path = Path(name) / "log.sqlite"
        key = SigningKey.generate()
        SignedLog.create(path, key, role="site", name="berlin")
        with SignedLog(path, key).writing() as put:
            for row, (epsilon, again) in enumerate(releases, 1):
                own = {**FIXED, "row": row + 7 * (change == "row" and row >= place), "epsilon": epsilon}
                own["release"] = f"{again * row:064x}" if again else own["release"]
                put("release", {name: own[name] for name in own if name not in ("number", "time")})
        if change == "hash":
            rewrite(path, place, b"\0", table="entries")
        at_once = scan_log(path)
        patched.setattr(log_scan, "map_in_processes", map_here)
        in_pieces = scan_log(path, piece=piece)
        assert in_pieces.fault == at_once.fault
        if not at_once.fault:  # a scan with a fault is not complete
            assert plain(in_pieces) == plain(at_once)


def plain(scan):
    groups = [{**vars(group), "fields": dict(group.fields)} for group in scan.groups.values()]
    return {**vars(scan), "groups": groups}


def test_a_reader_that_is_killed_leaves_no_verdict(custody, monkeypatch):
    monkeypatch.setattr(log_scan, "_scan_piece", killed)
    with pytest.raises(LogError, match="not read to the end: a process that did a part of it was killed"):
        scan_log(custody / "log.sqlite", piece=3)


@pytest.mark.usefixtures("in_this_process")
def test_a_release_charged_for_twice_is_found_in_any_pieces(custody):
    """By the site itself, which has the key to sign whatever it writes."""
    log, ledger = Chain(custody / "log.sqlite"), Chain(custody / "ledger.sqlite")
    releases = [n for n, text in enumerate(log.texts) if json.loads(text)["kind"] == "release"]
    first, last = (json.loads(log.texts[n]) for n in (releases[0], releases[-1]))
    row = json.loads(ledger.texts[-1])
    ledger.texts[-1] = canonical_json({**row, "id": first["id"]}).decode()
    ledger.write(chain=True)
    digest = hashes(custody / "ledger.sqlite")[-1]
    again = {**last, "id": first["id"], "row_hash": digest}
    log.texts[releases[-1]] = canonical_json(again).decode()
    log.write(chain=True, key=site_key(custody))
    fault = "its row of the ledger charges for what was charged before"
    for piece in (1, 2, 50_000):
        log_scan = scan_log(custody / "log.sqlite", custody / "ledger.sqlite", piece)
        assert (log_scan.fault, log_scan.ledger_fault) == ("", (releases[-1] + 1, fault))
    assert wrong(custody)["ledger"] == f"entry {releases[-1] + 1}: {fault}"


@pytest.mark.usefixtures("in_this_process")
def test_a_row_that_does_not_follow_is_found_though_the_log_shows_its_hash(custody):
    """By the site itself: what the ledger says of the chain is not believed, in the middle of it or after the log."""
    made_up = hashlib.sha256(b"made up").hexdigest()
    rewrite(custody / "ledger.sqlite", 2, made_up)
    log = Chain(custody / "log.sqlite")
    at = next(n for n, text in enumerate(log.texts) if json.loads(text).get("row") == 2)
    log.texts[at] = canonical_json({**json.loads(log.texts[at]), "row_hash": made_up}).decode()
    log.write(chain=True, key=site_key(custody))
    fault = "row 2 of the ledger does not follow from the row before it"
    for piece in (1, 50_000):
        log_scan = scan_log(custody / "log.sqlite", custody / "ledger.sqlite", piece)
        assert (log_scan.fault, log_scan.ledger_fault) == ("", (at + 1, fault))
    assert wrong(custody)["ledger"] == f"entry {at + 1}: {fault}"


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ("DELETE FROM origin", "row 1 of the ledger follows a row that is missing"),
        ("INSERT INTO origin SELECT hash FROM origin", "row 1 of the ledger follows a row that is missing"),
        ("DELETE FROM charges WHERE number = 2", "row 2 of the ledger is missing"),
        ("UPDATE charges SET hash = upper(hash) WHERE number = 2", "row 2 of the ledger has another hash than it had"),
        ("UPDATE charges SET entry = replace(entry, '+00:00', '+01:00') WHERE number = 3",
         "row 3 of the ledger says something else"),
        ("UPDATE charges SET entry = CAST(entry AS BLOB) WHERE number = 3", "row 3 of the ledger says something else"),
        ("INSERT INTO charges SELECT -1, entry, hash FROM charges WHERE number = 1",
         "row -1: a ledger begins with row 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_the_ledger_leaves_the_log_its_verdict(custody, change, fault):
    with contextlib.closing(sqlite3.connect(custody / "ledger.sqlite")) as database:
        database.execute(change)
        database.commit()
    (name, detail), *more = wrong(custody).items()
    assert (name, more) == ("ledger", [])
    assert detail.endswith(fault)


def test_a_row_beyond_the_log_must_follow_and_charge_for_something_new(custody):
    log, ledger = custody / "log.sqlite", Chain(custody / "ledger.sqlite")
    cut = Chain(log)
    last = max(n for n, text in enumerate(cut.texts) if json.loads(text)["kind"] == "release")
    cut.texts = cut.texts[:last]
    cut.write(chain=True, key=site_key(custody))

    def check_ledger():
        return {check.name: (check.passed, check.detail) for check in verify(custody).checks}["ledger"]

    assert check_ledger()[0] is None
    assert "row 3 was charged and its entry is missing" in check_ledger()[1]
    again = json.loads(ledger.texts[0])["id"]
    kept = ledger.texts[2]
    ledger.texts[2] = canonical_json({**json.loads(kept), "id": again}).decode()
    ledger.write(chain=True)
    assert check_ledger() == (False, "row 3: it charges for nothing, or for what was charged before")
    ledger.texts[2] = kept
    ledger.write(chain=True)
    rewrite(custody / "ledger.sqlite", 3, "0" * 64)
    assert check_ledger() == (False, "row 3: its hash does not follow from the row before and its text")


def wrong(folder):
    return {check.name: check.detail for check in select_failed(verify(folder).checks)}


def hashes(path):
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [digest for (digest,) in database.execute("SELECT hash FROM charges ORDER BY number")]


def rewrite(path, number, digest, table="charges"):
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE {table} SET hash = ? WHERE number = ?", (digest, number))  # noqa: S608
        database.commit()
