"""A log or a ledger, opened to be read alone: a stranger may have made it to harm its reader.

SQLite believes what it finds: a journal beside the file, which it rolls back; other files that the journal names, which
it deletes; pages that refer to each other without end. Here the file is a file, its journal is rolled back in a copy,
its tables are ours, and each page is looked at once before any row is read.
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
"""A journal that ends with these bytes names another file, which SQLite deletes once it has rolled the journal back."""

UNREADABLE: Final = (sqlite3.Error, OSError, UnicodeDecodeError, OverflowError, ValueError)
"""What reading a damaged file may raise."""


@contextlib.contextmanager
def opened(path: Path, *, again: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that reads alone; of a file whose writer was killed, to a copy that SQLite may set right.

    Args:
        path: Of a log or a ledger, a stranger's too.
        again: Whether the file was opened before without: its pages, which are as many as it is long, are not checked.

    Raises:
        LogError: It cannot be read, or is neither.
    """
    try:
        with contextlib.ExitStack() as stack:
            _check_files(path)
            if not again:
                _warm(path)
            database = stack.enter_context(contextlib.closing(_connected(path, "ro")))
            if _was_left(database, path):
                copy = Path(stack.enter_context(TemporaryDirectory(prefix="fedglm-audit-"))) / path.name
                _check_room(path, copy.parent)
                for name in (path.name, _journal(path).name):
                    shutil.copy(path.with_name(name), copy.with_name(name))
                _check_journal(_journal(copy), path)
                database = stack.enter_context(contextlib.closing(_connected(copy, "rw")))
                _was_left(database, path)
            if not again:
                _check_pages(database, path)
            yield database
    except UNREADABLE as exc:
        raise LogError(f"{path} cannot be read: {exc}") from exc


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}-journal")


def _check_files(path: Path) -> None:
    check_regular(path)
    for name in (f"{path.name}{end}" for end in ("-journal", "-wal", "-shm")):  # SQLite opens these too
        with contextlib.suppress(FileNotFoundError):
            check_regular(path.with_name(name))


def _check_room(path: Path, folder: Path) -> None:
    """A stranger's may have an end of nothing that fills the disk."""
    needed, free = path.stat().st_size + _journal(path).stat().st_size, shutil.disk_usage(folder).free
    if needed > free:
        raise LogError(
            f"{path} cannot be read: its writer was killed, and to set a copy of it right takes {needed:,} bytes of "
            f"{folder.parent}, which has {free:,}; TMPDIR may name a folder with more"
        )


def _check_journal(journal: Path, path: Path) -> None:
    with journal.open("rb") as file:
        file.seek(-min(len(_SUPER_JOURNAL), journal.stat().st_size), os.SEEK_END)
        if file.read() == _SUPER_JOURNAL:
            raise LogError(f"{path} cannot be read: its journal names another file, as none of ours does")


def _warm(path: Path) -> None:
    """Read a file from its beginning to its end: by the pages of its tree a cold disk takes ten times longer."""
    block = bytearray(2**20)
    with path.open("rb", buffering=0) as file:
        found = os.fstat(file.fileno())
        left = min(found.st_size, found.st_blocks * 512)  # a stranger's may have an end of nothing, without end
        while left > 0 and (read := file.readinto(block)):
            left -= read


def _connected(path: Path, mode: str) -> sqlite3.Connection:
    database = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True)
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2 * MAX_BYTES)  # of a row; SQLite's own would be a gigabyte
    return database


def _was_left(database: sqlite3.Connection, path: Path) -> bool:
    """Whether the file's writer was killed: a journal must be rolled back first. That of a living one is no matter.

    It reads the scheme, and whatever else a stranger put into the file is not looked at if that is not one of ours.
    """
    steps = iter(range(100))
    # Ours is read in a few hundred steps; pages that refer to each other could make it as many as they like.
    database.set_progress_handler(lambda: next(steps, None) is None, 1000)
    try:
        found = dict(database.execute("SELECT name, sql FROM sqlite_master LIMIT 10").fetchall())
    except sqlite3.OperationalError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_READONLY_ROLLBACK:
            return True
        raise
    finally:
        database.set_progress_handler(None, 0)
    if found not in (SignedLog.scheme(), Ledger.scheme()):
        raise other_scheme(path)
    return False


def _check_pages(database: sqlite3.Connection, path: Path) -> None:
    """Pages that refer to one page in turn hold rows without end; here SQLite looks at each page once."""
    if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise LogError(f"{path} cannot be read: SQLite finds its pages inconsistent")


def hash_before(database: sqlite3.Connection, table: str, number: int) -> str:
    """What an entry's hash is made with: that of the one before it, or what the chain begins with; empty for neither.

    Args:
        database: Of a log or a ledger.
        table: Of its entries.
        number: The entry's.
    """
    before = f"SELECT hash FROM {table} WHERE number = ?"  # noqa: S608 - our own name
    found = (
        database.execute(before, (number - 1,)) if number > 1 else database.execute("SELECT hash FROM origin LIMIT 2")
    ).fetchall()
    return str(found[0][0]) if len(found) == 1 and is_sha256(found[0][0]) else ""


def check_scheme(database: sqlite3.Connection, path: Path, scheme: dict[str, str]) -> None:
    """A view or a trigger could show anything, and a write-ahead log something else than the file that is handed on.

    Raises:
        LogError: The tables are others, or it is not kept in the way that ours are.
    """
    found = dict(database.execute("SELECT name, sql FROM sqlite_master").fetchall())
    if found != scheme or database.execute("PRAGMA journal_mode").fetchone() != ("delete",):
        raise other_scheme(path)


def other_scheme(path: Path) -> LogError:
    """For a file whose tables are not ours."""
    return LogError(f"{path} is not of this version, or its tables were changed: nothing in it can be trusted")
