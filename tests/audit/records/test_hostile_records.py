"""Records made to harm their reader: nothing is deleted, nobody waits for ever, and each is reported by name."""

import hashlib
import os
import shutil
import sqlite3
import struct
import time
import zipfile

import pytest

from fedglm.audit.bundle.contents import MANIFEST, SIGNATURE
from fedglm.audit.bundle.export import export_bundle
from fedglm.audit.bundle.untrusted_bundle import unpack_bundle
from fedglm.audit.empirical import results, trials
from fedglm.audit.records.checks import select_failed
from fedglm.audit.records.log_scan import scan_log
from fedglm.audit.records.snapshot import read_snapshot
from fedglm.audit.records.untrusted_sqlite import open_untrusted
from fedglm.audit.verify.server_records import RunFiles
from fedglm.audit.verify.verification import verify
from fedglm.core.canonical_json import canonical_json
from fedglm.privacy.errors import LogError, PolicyError, PrivacyError
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.entries import KINDS
from fedglm.privacy.log.signed_log import SignedLog
from fedglm.privacy.policy.policy_file import load_policy
from fedglm.run_folder.record import ReportError, read_run

KEY = SigningKey.generate()
JOURNAL = bytes.fromhex("d9d505f920a163d7")
"""What a journal begins with, and the name of a super-journal ends with."""


@pytest.fixture
def custody(run, tmp_path):
    """Custody folder of a site, to be changed."""
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
        wrong = select_failed(verify(tmp_path / name).checks)
        assert [check for check in wrong if "its journal names another file" in check.detail and name in check.detail]
        assert victim.exists()


def test_without_that_name_such_a_journal_is_rolled_back(log):
    journal(log)
    assert len(scan_log(log).chain) == 1


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
    with (
        pytest.raises(LogError, match=r"log\.sqlite cannot be read: SQLite finds its pages inconsistent"),
        open_untrusted(log),
    ):
        pass
    assert time.monotonic() - start < 20


def test_an_end_of_nothing_is_not_read(log):
    """SQLite believes its header about where a file ends; on the disk there is nothing behind that."""
    os.truncate(log, 2**40)
    assert scan_log(log).fault == ""
    assert len(read_snapshot(log)) < 2**20


def test_an_end_of_nothing_is_not_copied_where_a_writer_was_killed(log, tmp_path, monkeypatch):
    journal(log)
    os.truncate(log, 2**40)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    with (
        pytest.raises(LogError, match=r"takes 1,099,511,\d{3},\d{3} bytes of .*/tmp, which has [\d,]+; TMPDIR"),
        open_untrusted(log),
    ):
        pass
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_scheme_of_too_many_rows_is_not_read_for_ever(log):
    with sqlite3.connect(log) as database:
        database.execute("PRAGMA writable_schema = ON")
        rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
        database.execute(f"INSERT INTO sqlite_master {rows} SELECT 'table', 't' || i, 't' || i, 3, NULL FROM n")  # noqa: S608
    with pytest.raises(LogError, match=r"log\.sqlite"), open_untrusted(log):
        pass


@pytest.mark.parametrize("end", ["", "-journal", "-wal", "-shm"])
def test_a_pipe_in_place_of_a_log_or_beside_it_keeps_nobody_waiting(log, end):
    path = log.with_name(log.name + end)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(LogError, match=r"log\.sqlite cannot be read: .*it is a pipe or a device"), open_untrusted(log):
        pass


def test_what_is_wrong_with_a_log_is_not_told_as_the_ledger_s(custody):
    log, ledger = custody / "log.sqlite", custody / "ledger.sqlite"
    spoil(log)
    with pytest.raises(LogError, match=r"log\.sqlite cannot be read"):
        scan_log(log, ledger)


def test_what_is_wrong_with_a_ledger_is_not_told_as_the_log_s(custody):
    log, ledger = custody / "log.sqlite", custody / "ledger.sqlite"
    spoil(ledger)
    with pytest.raises(LogError, match=r"ledger\.sqlite cannot be read"):
        scan_log(log, ledger)


def spoil(path):
    """Store text that is not valid UTF-8."""
    with sqlite3.connect(path) as database:
        table = "charges" if path.name == "ledger.sqlite" else "entries"
        database.execute(f"UPDATE {table} SET entry = CAST(x'ff' AS TEXT) WHERE number = 2")  # noqa: S608


def bundle(path, contents, method=zipfile.ZIP_DEFLATED, role="auditor"):
    files = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    manifest = canonical_json({"made": "", "role": role, "key": KEY.public.hex, "files": files})
    signature = KEY.sign("fedglm/bundle/1", manifest).hex().encode()
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in {**contents, MANIFEST: manifest, SIGNATURE: signature}.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    "name", ["custody/log.sqlite-journal", "nodes/a\x1b[2J/custody/policy.toml", "x", "nodes/./custody/policy.toml"]
)
def test_a_bundle_with_a_name_that_none_has_is_refused(tmp_path, name):
    with (
        pytest.raises(PrivacyError, match="a file that none may") as caught,
        unpack_bundle(bundle(tmp_path / "b.zip", {name: b""})),
    ):
        pass
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "change", [{"method": zipfile.ZIP_LZMA}, {"method": zipfile.ZIP_BZIP2}, {"role": "\x1b"}, {"role": ["x"]}]
)
def test_a_bundle_packed_or_meant_otherwise_is_refused(tmp_path, change):
    with (
        pytest.raises(PrivacyError, match="the bundle is"),
        unpack_bundle(bundle(tmp_path / "b.zip", {"rounds.jsonl": b""}, **change)),
    ):
        pass


@pytest.mark.parametrize("name", ["audit/canaries.json", "nodes/z"])
def test_no_link_is_exported(tmp_path, name):
    (tmp_path / "run" / "audit").mkdir(parents=True)
    (tmp_path / "run" / "nodes").mkdir()
    (tmp_path / "else" / "custody").mkdir(parents=True)
    (tmp_path / "else" / "custody" / "policy.toml").write_text("secret")
    to = "else" if name == "nodes/z" else "else/custody/policy.toml"
    (tmp_path / "run" / name).symlink_to(tmp_path / to)
    with pytest.raises(PrivacyError, match=f"{name}.* is a link"):
        export_bundle(tmp_path / "run", tmp_path / "b.zip", "auditor", KEY)


def test_pipes_in_place_of_other_records_keep_nobody_waiting(tmp_path):
    for name in ("policy.toml", "canaries.json", "summary.json", "rounds.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(PolicyError, match="a pipe"):
        load_policy(tmp_path / "policy.toml", KEY.public)
    with pytest.raises(ReportError, match="a pipe"):
        results.CanaryAudit.read(tmp_path / "canaries.json")
    with pytest.raises(ReportError, match="a pipe"):
        read_run(tmp_path)
    with pytest.raises(PrivacyError, match="a pipe"):
        export_bundle(tmp_path, tmp_path / "b.zip", "auditor", KEY)
    with pytest.raises(PrivacyError, match="a pipe"):
        RunFiles.read(tmp_path)


@pytest.mark.parametrize("name", ["rounds.jsonl", "summary.json", "proof.json"])
def test_a_file_longer_than_any_takes_no_memory(tmp_path, name):
    with open(tmp_path / name, "wb") as file:
        file.truncate(2**31)  # of which the disk holds nothing
    with pytest.raises(PrivacyError, match="is longer than"):
        RunFiles.read(tmp_path) if name != "proof.json" else verify(tmp_path / name)


def test_a_mechanism_of_lists_is_none():
    assert not KINDS["release"]["mechanism"]({"unit": ["record"]})


def test_a_scenario_too_deep_to_be_read_is_shown_as_it_stands(tmp_path):
    (tmp_path / "summary.json").write_text("{}")
    (tmp_path / "rounds.jsonl").write_text("")
    (tmp_path / "scenario.toml").write_text("x = " + "[" * 100_000)
    assert read_run(tmp_path).settings == {}


def test_the_trials_are_those_that_an_audit_makes():
    assert set(results.TRIALS) == set(trials.TRIALS)


def test_a_claim_that_no_audit_makes_is_damage():
    figures = {"kind": "records", "canaries": 9, "delta": 1e-5, "confidence": 0.9}
    figures |= dict.fromkeys(("one_run", "f_dp", "estimate", "estimate_least"), 1.0)
    assert results.CanaryFigures(**figures, claimed=2.0).bound == 1
    with pytest.raises(ValueError, match="claimed"):
        results.CanaryFigures(**figures, claimed=2.2)
