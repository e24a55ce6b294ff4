"""Files of a stranger's that are small to send and large to read: refused before memory or disk is taken for them."""

import shutil
import sqlite3
import struct
import tracemalloc
import zipfile
from contextlib import contextmanager

import pytest
from command_line import run_here
from omitted_records import packed, signed

from fedglm.audit.records.checks import select_failed
from fedglm.audit.verify.verification import verify
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.log.signed_log import SignedLog

KEY = SigningKey.generate()
MIB = 2**20


@contextmanager
def at_most(most):
    """The block takes no more memory, in bytes."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak:,} bytes"


def bundle(folder, contents):
    return packed(signed(contents, KEY, "auditor"), folder / "b.zip")


def refused(path):
    """The one line about it; nothing of it may be on the disk by then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipExtFile, "read", _only_lists(zipfile.ZipExtFile.read))
        return run_here("audit", "verify", path).line()


def _only_lists(read):
    def act(file, *arguments):
        assert file.name.startswith("MANIFEST"), f"{file.name} is unpacked"
        return read(file, *arguments)

    return act


def test_much_of_nothing(tmp_path):
    path = bundle(tmp_path, {"audit/log.sqlite": bytes(64 * MIB), "rounds.jsonl": b"{}"})
    assert path.stat().st_size < MIB
    said = refused(path)
    assert "67,108,866 bytes" in said
    assert str(path) in said


def test_a_file_that_is_longer_than_its_kind_is(tmp_path):
    said = refused(bundle(tmp_path, {"audit/log.sqlite": b"", "nodes/a/custody/policy.toml": b"# " + bytes(MIB)}))
    assert "policy.toml' has 1,048,578 bytes" in said


def test_a_file_that_stands_in_the_list_twice(tmp_path):
    """Each is a name for the same piece of the archive: what it unpacks to is many times what it declares to hold."""
    path = bundle(tmp_path, {"audit/log.sqlite": bytes(MIB)})
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("audit/log.sqlite", bytes(MIB))
    assert "a file twice" in refused(path)


def test_a_list_of_files_without_end(tmp_path):
    path, size = tmp_path / "b.zip", 256 * MIB
    with path.open("wb") as file:
        file.truncate(size)  # of which the disk holds nothing
        file.seek(size)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65535, 65535, size, 0, 0))
    with at_most(64 * MIB), pytest.raises(PrivacyError, match=r"b\.zip is no bundle"):
        verify(path)


def test_a_row_without_end(tmp_path):
    """SQLite would read a row of a gigabyte, and an entry has 256 KiB at most."""
    path = tmp_path / "audit" / "log.sqlite"
    path.parent.mkdir()
    SignedLog.create(path, KEY, role="server", name="server")
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO entries VALUES (2, CAST(zeroblob(?) AS TEXT), ?)", (32 * MIB, "0" * 64))
    database.close()
    with at_most(16 * MIB):
        assert [check.name for check in select_failed(verify(tmp_path).checks)] == ["log"]


def test_more_than_the_disk_has_room_for(tmp_path, monkeypatch):
    path = bundle(tmp_path, {"audit/log.sqlite": bytes(MIB)})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=MIB // 2))
    said = refused(path)
    assert "TMPDIR may name a folder with more" in said


def test_a_key_in_a_file_without_end(tmp_path):
    (tmp_path / "audit").mkdir()
    SignedLog.create(tmp_path / "audit" / "log.sqlite", KEY, role="server", name="server")
    with (tmp_path / "site.pub").open("wb") as file:
        file.truncate(64 * MIB)
    with at_most(32 * MIB):
        said = run_here("audit", "verify", tmp_path, "--key", tmp_path / "site.pub").line()
    assert "it cannot be read (it is longer than" in said
