import errno
import os
import pickle
import resource
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time

import pytest
from safetensors import SafetensorError

from fedglm.core.files import DiskFullError, StorageError, is_disk_full, storage_errors, write_atomically


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def old(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    return path


@pytest.mark.parametrize(("data", "content"), [(b"\0\xff", b"\0\xff"), ("näher", "näher".encode()), (b"", b"")])
def test_bytes_and_text_are_written_into_folders_that_are_made(tmp_path, data, content):
    path = tmp_path / "a" / "b" / "file"
    write_atomically(path, data)
    assert path.read_bytes() == content
    assert names(path.parent) == ["file"]


def test_an_older_file_is_replaced_and_not_written_into(old):
    with old.open("rb") as reader:
        write_atomically(old, b"new")
        assert reader.read() == b"old"
    assert old.read_bytes() == b"new"


def test_content_is_on_the_disk_before_the_name_and_the_name_before_it_returns(old, monkeypatch):
    events = []

    def spy(name):
        real = getattr(os, name)

        def call(*args, **kwargs):
            if name == "fsync":
                kind = "folder" if os.path.isdir(f"/proc/self/fd/{args[0]}") else "file"
                events.append(f"fsync {kind}")
            else:
                events.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(os, name, call)

    spy("fsync")
    spy("replace")
    write_atomically(old, b"new")
    assert events == ["fsync file", "replace", "fsync folder"]


STEPS = ["fsync", "chmod", "replace"]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_step_leaves_the_old_content_and_no_temporary_file(old, monkeypatch, step, failure):
    def fail(*_, **__):
        raise failure

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        with pytest.raises((StorageError, KeyboardInterrupt)) as caught:
            write_atomically(old, b"new")
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["file.bin"]
    if isinstance(failure, OSError):
        assert str(caught.value).startswith(f"cannot write {old}: the disk is full: free some space")
        assert caught.value.__cause__ is failure
        assert isinstance(caught.value, DiskFullError)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no resource limits")
def test_a_file_too_large_for_the_disk_leaves_the_old_content(old):
    """For real: the kernel cuts the write short."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
        with pytest.raises(StorageError, match="File too large"):
            write_atomically(old, bytes(1 << 20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert old.read_bytes() == b"old"
    assert names(old.parent) == ["file.bin"]


def test_other_errors_are_named_too(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"cannot write .*below: (File exists|Not a directory)"):
        write_atomically(tmp_path / "file" / "below", b"x")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"cannot write .*folder: Is a directory"):
        write_atomically(tmp_path / "folder", b"x")
    assert names(tmp_path) == ["file", "folder"]


def raised_from(error, cause):
    error.__cause__ = cause
    return error


def full_database():
    """SQLite's own error over a database that may not grow."""
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 3")
    database.execute("CREATE TABLE t (x)")
    with pytest.raises(sqlite3.OperationalError) as caught:
        database.execute("INSERT INTO t VALUES (zeroblob(100000))")
    database.close()
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError('I/O error: No space left on device (os error 28) at path "/x"'),
        full_database(),
        raised_from(ValueError("no ledger"), raised_from(RuntimeError("x"), DiskFullError("cannot write x"))),
        pickle.loads(pickle.dumps(DiskFullError("cannot write x"))),  # noqa: S301 - our own
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_full_disk_is_known_by_codes_and_types(tmp_path, error):
    assert is_disk_full(error)
    if isinstance(error, OSError | SafetensorError):
        with (
            pytest.raises(DiskFullError, match=r"the disk is full: free some space.*--resume"),
            storage_errors(tmp_path),
        ):
            raise error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EACCES, "the disk is full"),
        SafetensorError("I/O error: Permission denied (os error 13)"),
        SafetensorError("(os error 280)"),
        sqlite3.OperationalError("database or disk is full"),
        RuntimeError("the disk is full (os error 28)"),
        raised_from(ValueError("x"), StorageError("cannot write x: the disk is full")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_words_alone_make_no_full_disk(tmp_path, error):
    assert not is_disk_full(error)
    if isinstance(error, OSError | SafetensorError):
        with pytest.raises(StorageError) as caught, storage_errors(tmp_path):
            raise error
        assert not isinstance(caught.value, DiskFullError)


def test_a_reader_never_sees_half_a_file_however_the_writer_dies(tmp_path):
    """A writer is killed again and again; what stands there is always one whole content."""
    path = tmp_path / "file"
    program = textwrap.dedent("""
        import sys
        from pathlib import Path
        from fedglm.core.files import write_atomically
        print("ready", flush=True)
        number = 0
        while True:
            number += 1
            write_atomically(Path(sys.argv[1]), bytes([number % 256]) * 300_000)
    """)
    for delay in (0.0, 0.013, 0.029):
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as writer:
            writer.stdout.readline()
            for _ in range(20):
                assert_whole(path)
            time.sleep(delay)
            writer.kill()
        assert_whole(path)


def assert_whole(path):
    if path.exists():
        content = path.read_bytes()
        assert len(content) == 300_000
        assert len(set(content)) == 1
