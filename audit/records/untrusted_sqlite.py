"""Opens a log or a ledger for reading alone; a stranger may have made it to harm its reader.

SQLite trusts what it finds: a journal beside the file, which it rolls back; other files that the journal names, which
it deletes; pages that refer to each other without end. Here the file must be a regular file, its journal is rolled back
in a copy, its tables must be ours, and each page is checked once before any row is read.
"""

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from fedglm.core.untrusted_files import check_regular
from fedglm.privacy.errors import LogError
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.chained_file import is_sha256
from fedglm.privacy.log.entries import MAX_BYTES
from fedglm.privacy.log.signed_log import SignedLog

_SUPER_JOURNAL: Final = bytes.fromhex("d9d505f920a163d7")
"""A journal that ends with these bytes names another file, which SQLite deletes after rolling the journal back."""

UNREADABLE: Final = (sqlite3.Error, OSError, UnicodeDecodeError, OverflowError, ValueError)
"""Exceptions that reading a damaged file may raise."""


@contextlib.contextmanager
def open_untrusted(path: Path, *, again: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a connection for reading; if the file's writer was killed, to a copy that SQLite may roll back.

    Args:
        path: Path of a log or a ledger, possibly a stranger's.
        again: Whether the file was opened before without this option: then its pages are not checked again, which takes
            as long as reading the file.

    Raises:
        LogError: The file cannot be read, or is neither a log nor a ledger.
    """
    try:
        with contextlib.ExitStack() as stack:
            _check_files(path)
            if not again:
                _warm_page_cache(path)
            database = stack.enter_context(contextlib.closing(_connect(path, "ro")))
            if _needs_rollback(database, path):
                copy = Path(stack.enter_context(TemporaryDirectory(prefix="fedglm-audit-"))) / path.name
                _check_free_space(path, copy.parent)
                for name in (path.name, _journal_path(path).name):
                    shutil.copy(path.with_name(name), copy.with_name(name))
                _check_journal(_journal_path(copy), path)
                database = stack.enter_context(contextlib.closing(_connect(copy, "rw")))
                _needs_rollback(database, path)
            if not again:
                _check_pages(database, path)
            yield database
    except UNREADABLE as exc:
        raise LogError(f"{path} cannot be read: {exc}") from exc


def _journal_path(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")


def _check_files(path: Path) -> None:
    """Check that the file, and each that SQLite would open beside it, is a regular one."""
    check_regular(path)
    for name in (f"{path.name}{end}" for end in ("-journal", "-wal", "-shm")):  # SQLite opens these too
        with contextlib.suppress(FileNotFoundError):
            check_regular(path.with_name(name))


def _check_free_space(path: Path, folder: Path) -> None:
    """Check that the disk has room for a copy: a stranger's file may end in a hole larger than the disk."""
    needed, free = path.stat().st_size + _journal_path(path).stat().st_size, shutil.disk_usage(folder).free
    if needed > free:
        raise LogError(
            f"{path} cannot be read: its writer was killed, and to set a copy of it right takes {needed:,} bytes of "
            f"{folder.parent}, which has {free:,}; TMPDIR may name a folder with more"
        )


def _check_journal(journal: Path, path: Path) -> None:
    """Refuse a journal that names another file."""
    with journal.open("rb") as file:
        file.seek(-min(len(_SUPER_JOURNAL), journal.stat().st_size), os.SEEK_END)
        if file.read() == _SUPER_JOURNAL:
            raise LogError(f"{path} cannot be read: its journal names another file, as none of ours does")


def _warm_page_cache(path: Path) -> None:
    """Read a file from beginning to end: in the order of its tree, a cold disk takes ten times longer."""
    block = bytearray(2**20)
    with path.open("rb", buffering=0) as file:
        stat = os.fstat(file.fileno())
        left = min(stat.st_size, stat.st_blocks * 512)  # a stranger's file may end in a hole of any length
        while left > 0 and (read := file.readinto(block)):
            left -= read


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    """Connect to a file; `mode` is SQLite's: `ro` or `rw`."""
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * MAX_BYTES)  # of a row; SQLite's default is a gigabyte
    return database


def _needs_rollback(database: sqlite3.Connection, path: Path) -> bool:
    """Return whether the file's writer was killed, so that its journal must be rolled back; a living writer's need not.

    This reads the schema. If that is not one of ours, nothing else that a stranger put into the file is read.

    Raises:
        LogError: The tables are not ours.
    """
    steps = iter(range(100))
    # Ours is read in a few hundred steps; pages that refer to each other could take any number of steps.
    database.set_progress_handler(lambda: next(steps, None) is None, 1000)
    try:
        schema = dict(database.execute("SELECT name, sql FROM sqlite_master LIMIT 10").fetchall())
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
            return True
        raise
    finally:
        database.set_progress_handler(None, 0)
    if schema not in (SignedLog.schema(), Ledger.schema()):
        raise make_schema_error(path)
    return False


def _check_pages(database: sqlite3.Connection, path: Path) -> None:
    """Check each page once: pages that refer to the same page over and over would hold rows without end."""
    if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise LogError(f"{path} cannot be read: SQLite finds its pages inconsistent")


def read_previous_hash(database: sqlite3.Connection, table: str, number: int) -> str:
    """Read the hash that an entry's hash is made with: that of the entry before, or the origin of the chain.

    Args:
        database: Connection to a log or a ledger.
        table: Name of the table with the entries.
        number: Number of the entry, from 1.

    Returns:
        The hash, hex; empty if there is none.
    """
    before = f"SELECT hash FROM {table} WHERE number = ?"  # noqa: S608 - our own name
    rows = (
        database.execute(before, (number - 1,)) if number > 1 else database.execute("SELECT hash FROM origin LIMIT 2")
    ).fetchall()
    return str(rows[0][0]) if len(rows) == 1 and is_sha256(rows[0][0]) else ""


def check_schema(database: sqlite3.Connection, path: Path, scheme: dict[str, str]) -> None:
    """Check that a file has our tables only, and no write-ahead log.

    A view or a trigger could show anything, and a write-ahead log something else than the file that is handed on.

    Args:
        database: Connection to the file.
        path: Path of the file, for the error.
        scheme: SQL of each table, by its name.

    Raises:
        LogError: The tables are others, or the file has another journal mode than ours.
    """
    tables = dict(database.execute("SELECT name, sql FROM sqlite_master").fetchall())
    if tables != scheme or database.execute("PRAGMA journal_mode").fetchone() != ("delete",):
        raise make_schema_error(path)


def make_schema_error(path: Path) -> LogError:
    """Return the error for a file whose tables are not ours."""
    return LogError(f"{path} is not of this version, or its tables were changed: nothing in it can be trusted")
