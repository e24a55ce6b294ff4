"""The ledger survives kills, full disks and rivals, and says so when somebody changed it."""

# ruff: noqa: S311 - repeatable on purpose

import contextlib
import hashlib
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import time

import pytest
from ledgers import DELTA, budget_for, charge, sha256, tamper

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.privacy.errors import LedgerError, Refusal
from fedglm.privacy.ledger.ledger import Ledger

FORK = multiprocessing.get_context("fork")

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def ledger(path):
    return Ledger.create(path)


# Tampering.


def swap(first, second):
    places = ((first, 99), (second, first), (99, second))
    return tuple(f"UPDATE charges SET number = {new} WHERE number = {old}" for old, new in places)  # noqa: S608


@pytest.fixture
def three(path, ledger):
    for number in (1, 2, 3):
        ledger.charge(charge(number), None)
    return path


@pytest.mark.parametrize(
    "statements",
    [
        ("DELETE FROM charges WHERE number = 1",),
        ("DELETE FROM charges WHERE number = 2",),
        ("DELETE FROM charges WHERE number = 2", "UPDATE charges SET number = 2 WHERE number = 3"),
        swap(1, 2),
        swap(2, 3),
        ("UPDATE charges SET hash = (SELECT hash FROM charges WHERE number = 1) WHERE number = 2",),
        ("UPDATE charges SET entry = (SELECT entry FROM charges WHERE number = 1) WHERE number = 2",),
        ("UPDATE charges SET entry = replace(entry, '1.5', '9.5') WHERE number = 3",),
        ("UPDATE charges SET entry = entry || ' '",),
        ("UPDATE charges SET entry = CAST(entry AS BLOB) WHERE number = 1",),
        ("UPDATE charges SET hash = upper(hash)",),
        ("UPDATE charges SET hash = X'00' WHERE number = 3",),
        ("UPDATE charges SET number = number + 10",),
        ("UPDATE charges SET number = -number",),
        ("UPDATE charges SET number = 0 WHERE number = 1",),
        ("INSERT INTO charges SELECT -1, entry, hash FROM charges WHERE number = 1",),
        ("INSERT INTO charges SELECT 4, entry, hash FROM charges WHERE number = 3",),
        ("INSERT INTO charges VALUES (4, '{}', '')",),
        ("DELETE FROM origin",),
        ("INSERT INTO origin SELECT hash FROM origin",),
        ("UPDATE origin SET hash = (SELECT hash FROM charges WHERE number = 1)",),
        ("UPDATE origin SET hash = 'x'",),
        ("UPDATE origin SET hash = X'00'",),
        ("DROP TABLE charges",),
        ("DROP TABLE origin",),
        ("CREATE TRIGGER forget AFTER INSERT ON charges BEGIN DELETE FROM charges WHERE number = new.number; END",),
        ("CREATE TABLE other (x)",),
        ("CREATE INDEX other ON charges (hash)",),
        ("ALTER TABLE charges ADD COLUMN other",),
        ("ALTER TABLE charges RENAME TO kept", "CREATE VIEW charges AS SELECT * FROM kept"),
        ("PRAGMA journal_mode = WAL",),
    ],
    ids=lambda statements: " ; ".join(statements)[:60],
)
def test_a_changed_row_order_or_scheme_is_refused_on_opening(three, statements):
    tamper(three, *statements)
    with pytest.raises(LedgerError, match=str(three)):
        Ledger(three)


@pytest.mark.parametrize("change", [{"epsilon": 1}, {"round": -1}, {"mechanism": {}}, {"mechanism": 3}, {"number": 7}])
def test_a_forged_row_with_a_right_hash_must_still_be_a_charge(three, change):
    """Who recomputes the chain passes all hashes; what he writes must at least mean something."""
    with sqlite3.connect(three) as database:
        previous, entry = database.execute(
            "SELECT (SELECT hash FROM charges WHERE number = 2), entry FROM charges WHERE number = 3"
        ).fetchone()
        forged = canonical_json({**read_canonical_json(entry.encode()), **change})
        digest = hashlib.sha256(bytes.fromhex(previous) + forged).hexdigest()
        database.execute("UPDATE charges SET entry = ?, hash = ? WHERE number = 3", (forged.decode(), digest))
    database.close()
    with pytest.raises(LedgerError, match="damaged at row 3"):
        Ledger(three)


def test_any_byte_of_any_row(three):
    whole = three.read_bytes()
    rows = Ledger(three).rows()
    texts = [position for row in rows for position in (whole.index(row.hash.encode()) + at for at in range(64))]
    start = whole.index(b'{"commitment"')
    texts += list(range(start, start + 1500, 5))
    for position in texts:
        changed = bytearray(whole)
        changed[position] ^= 1
        three.write_bytes(changed)
        with pytest.raises(LedgerError):
            Ledger(three)


def test_any_byte_of_the_file_changes_nothing_unseen(three):
    whole = three.read_bytes()
    rows = Ledger(three).rows()
    dice = random.Random(3)
    for position in [*range(0, 120, 3), *(dice.randrange(len(whole)) for _ in range(300))]:
        changed = bytearray(whole)
        changed[position] ^= 1 << dice.randrange(8)
        three.write_bytes(changed)
        with contextlib.suppress(LedgerError):
            assert Ledger(three).rows() == rows  # a byte that nobody reads


def test_a_file_cut_anywhere_is_refused(three):
    whole = three.read_bytes()
    for length in [0, 1, 99, 100, 512, 4095, 4096, 8192, len(whole) - 4096, len(whole) - 1]:
        three.write_bytes(whole[:length])
        with pytest.raises(LedgerError):
            Ledger(three)


def test_a_file_that_is_none_is_refused(path):
    path.parent.mkdir()
    for content in (b"", b"not a ledger" * 100, os.urandom(20_000)):
        path.write_bytes(content)
        with pytest.raises(LedgerError, match=str(path)):
            Ledger(path)
        assert path.read_bytes() == content


def test_a_change_while_it_is_open_is_seen_before_the_next_charge(three):
    ledger = Ledger(three)
    tamper(three, "DELETE FROM charges WHERE number = 3")
    for ask in (ledger.rows, lambda: ledger.charge(charge(4), None), lambda: ledger.head):
        with pytest.raises(LedgerError, match="gone or changed"):
            ask()


# Rivals, kills, a full disk.


def forked(work, *arguments):
    """A child process, and the end of a pipe that `work` writes to."""
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=work, args=(sender, *arguments), daemon=True)
    child.start()
    sender.close()
    return child, receiver


def spend_all(pipe, path, who, budget):
    ledger = Ledger(path)
    done = 0
    try:
        while True:
            ledger.charge(charge(done, run=f"run-{who}"), budget)
            done += 1
    except Refusal:
        pipe.send(done)


def test_rivals_together_spend_the_budget_and_no_more(path, ledger):
    budget = budget_for(7)  # imports the accountants, too, before the fork
    rivals = [forked(spend_all, path, who, budget) for who in range(4)]
    done = [pipe.recv() for _, pipe in rivals]
    for child, _ in rivals:
        child.join()
    assert sum(done) == 7 == len(ledger.rows())
    assert ledger.spending("notes", sha256("content")).at(DELTA).epsilon <= budget.epsilon


def release_forever(pipe, path):
    """Charge, then send; whatever the parent reads must be in the ledger."""
    ledger = Ledger(path)
    while True:
        release = sha256(os.urandom(32))
        ledger.charge(charge(release=release), None)
        pipe.send(release)


@pytest.mark.parametrize("kills", [10, pytest.param(30, marks=pytest.mark.slow)])
def test_killed_at_any_moment_every_row_is_whole_and_nothing_sent_is_missing(path, ledger, kills):
    sent = []
    dice = random.Random(5)
    for attempt in range(1, kills + 1):
        child, pipe = forked(release_forever, path)
        sent.append(pipe.recv())
        time.sleep(dice.uniform(0, 0.03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        try:
            while True:
                sent.append(pipe.recv())
        except EOFError:
            pass
        rows = Ledger(path).rows()
        assert len(sent) <= len(rows) <= len(sent) + attempt  # a kill may fall between a charge and its message
        assert {row.charge.release for row in rows} >= set(sent)
    assert ledger.rows() == rows


@pytest.fixture
def small_disk(tmp_path):
    """64 KiB in memory, and what makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")

    mount("size=64k")
    yield folder, mount
    subprocess.run(["umount", "-l", folder], check=True)


def test_on_a_full_disk_nothing_is_charged_and_later_it_goes_on(small_disk):
    folder, mount = small_disk
    ledger = Ledger.create(folder / "ledger")
    done = 0

    def charge_on():
        nonlocal done
        for number in range(500):
            ledger.charge(charge(number), None)
            done += 1

    with pytest.raises(LedgerError, match="the disk is full"):
        charge_on()
    assert done > 5
    assert len(ledger.rows()) == len(Ledger(folder / "ledger").rows()) == done
    with pytest.raises(LedgerError, match="the disk is full"):
        ledger.charge(charge(done), None)
    fill_up(folder)
    with pytest.raises(LedgerError, match="the disk is full"):
        Ledger.create(folder / "another")
    (folder / "rest").unlink()
    mount("remount,size=1m")
    ledger.charge(charge(done), None)
    assert len(Ledger(folder / "ledger").rows()) == done + 1
    assert os.listdir(folder) == ["ledger"]


def fill_up(folder):
    with (folder / "rest").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(512))
        except OSError:
            pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError, match="cannot write"):
        Ledger.create(tmp_path / "file" / "ledger")
