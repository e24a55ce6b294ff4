"""Records that somebody made to harm who reads them: nothing is deleted, nobody waits for ever, and each is named."""

import os
import shutil
import sqlite3
import struct
import time

import pytest
from audited_run import make_run

from fedglm.privacy.audit_checks import failed
from fedglm.privacy.audit_verify import verify
from fedglm.privacy.errors import LogError
from fedglm.privacy.keys import SigningKey
from fedglm.privacy.log_scan import opened, scan
from fedglm.privacy.signed_log import SignedLog

KEY = SigningKey.generate()
JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""What a journal begins with, and the name of a super-journal ends with."""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)
        return make_run(tmp_path_factory.mktemp("audited") / "run")


@pytest.fixture
def custody(run, tmp_path):
    """Custody folder of a site's, to be changed."""
    shutil.copytree(run / "nodes" / "a" / "custody", tmp_path / "custody")
    return tmp_path / "custody"


@pytest.fixture
def log(tmp_path):
    SignedLog.create(tmp_path / "log.sqlite", KEY, role="site", name="berlin")
    return tmp_path / "log.sqlite"


def pages(path):
    """Content of a file, and the size of its pages."""
    content = path.read_bytes()
    return bytearray(content), struct.unpack(">H", content[16:18])[0]


def journal(path, victim=None):
    """A journal that a killed writer could have left, of the first page; at its end it may name a super-journal."""
    content, size = pages(path)
    page, nonce = bytes(content[:size]), 12345
    checksum = nonce + sum(page[at] for at in range(size - 200, 0, -200))
    text = (JOURNAL + struct.pack(">5I", 1, nonce, len(content) // size, 512, size)).ljust(512, b"\0")
    text += struct.pack(">I", 1) + page + struct.pack(">I", checksum & 0xFFFFFFFF)
    if victim is not None:
        name = str(victim).encode()
        text += struct.pack(">I", 2**30 // size + 1) + name + struct.pack(">II", len(name), sum(name)) + JOURNAL
    path.with_name(f"{path.name}-journal").write_bytes(text)


def test_a_journal_that_names_a_file_does_not_have_it_deleted(custody, tmp_path):
    victim = tmp_path / "victim.txt"
    for name in ("log.sqlite", "ledger.sqlite"):
        victim.write_text("the auditor's own file")
        shutil.copytree(custody, tmp_path / name)
        journal(tmp_path / name / name, victim)
        wrong = failed(verify(tmp_path / name).checks)
        assert [check for check in wrong if "its journal names another file" in check.said and name in check.said]
        assert victim.exists()


def test_without_that_name_such_a_journal_is_rolled_back(log):
    journal(log)
    assert len(scan(log).chain) == 1


def interior(size, child):
    """A page of a table that refers to one child all over."""
    page, at = bytearray(size), size
    cells = 450
    for number in range(cells):
        at -= 5
        page[at : at + 5] = struct.pack(">IB", child, 1)
        page[12 + 2 * number : 14 + 2 * number] = struct.pack(">H", at)
    page[:12] = struct.pack(">BHHHBI", 5, 0, cells, at, 0, child)
    return bytes(page)


@pytest.mark.parametrize("table", ["entries", "origin", "checkpoint"])
def test_pages_that_refer_to_one_page_in_turn_are_not_read_for_ever(log, table):
    with sqlite3.connect(log) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    content, size = pages(log)
    last = len(content) // size
    content += content[(root - 1) * size : root * size]
    for level in range(1, 5):
        content += interior(size, last + level)
    content[(root - 1) * size : root * size] = interior(size, last + 5)
    content[28:32] = struct.pack(">I", len(content) // size)
    log.write_bytes(content)
    start = time.monotonic()
    with pytest.raises(LogError, match=r"log\.sqlite cannot be read: SQLite finds its pages inconsistent"), opened(log):
        pass
    assert time.monotonic() - start < 20


def test_a_scheme_of_too_many_rows_is_not_read_for_ever(log):
    with sqlite3.connect(log) as database:
        database.execute("PRAGMA writable_schema = ON")
        rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
        database.execute(f"INSERT INTO sqlite_master {rows} SELECT 'table', 't' || i, 't' || i, 3, NULL FROM n")  # noqa: S608
    with pytest.raises(LogError, match=r"log\.sqlite"), opened(log):
        pass


@pytest.mark.parametrize("end", ["", "-journal", "-wal", "-shm"])
def test_a_pipe_in_place_of_a_log_or_beside_it_keeps_nobody_waiting(log, end):
    path = log.with_name(log.name + end)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(LogError, match=r"log\.sqlite cannot be read: .*it is a pipe or a device"), opened(log):
        pass


def test_what_is_wrong_with_a_log_is_not_told_as_the_ledger_s(custody):
    log, ledger = custody / "log.sqlite", custody / "ledger.sqlite"
    spoil(log)
    with pytest.raises(LogError, match=r"log\.sqlite cannot be read"):
        scan(log, ledger)


def test_what_is_wrong_with_a_ledger_is_not_told_as_the_log_s(custody):
    log, ledger = custody / "log.sqlite", custody / "ledger.sqlite"
    spoil(ledger)
    with pytest.raises(LogError, match=r"ledger\.sqlite cannot be read"):
        scan(log, ledger)


def spoil(path):
    """Text that is no text."""
    with sqlite3.connect(path) as database:
        table = "charges" if path.name == "ledger.sqlite" else "entries"
        database.execute(f"UPDATE {table} SET entry = CAST(x'ff' AS TEXT) WHERE number = 2")  # noqa: S608
