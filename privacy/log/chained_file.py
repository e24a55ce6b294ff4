"""A file of entries that follow from each other: what the privacy ledger and the signed log are kept in.

One SQLite file holds entries of canonical JSON, each with the SHA-256 of the hash before it and of its own text, so
that an entry changed, moved or taken out is seen when the file is opened. The chain begins with a random number: no two
files share a hash. Who can write the file can also compute a whole new chain, or put back an old copy. That is seen
only with an anchor, a `Head` that somebody else kept, and `holds` answers.

Several processes may use a file at once. What is written is on the disk for good when the call returns.
"""

import contextlib
import hashlib
import re
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Final

from fedglm.core.files import FREE_SOME, StorageError, new_file
from fedglm.privacy.errors import PrivacyError

SHORT: Final = 32
"""Digits of a hash by which an anchor may be known."""

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_ANCHOR: Final = re.compile(rf"[0-9]{{1,9}}:[0-9a-f]{{{SHORT}}}")
_PATIENCE: Final = 120.0
"""Seconds that a process waits while another one writes."""


def is_sha256(value: object) -> bool:
    """Whether `value` is 64 lower-case hexadecimal digits."""
    return type(value) is str and _HASH.fullmatch(value) is not None


def chained(previous: str, entry: bytes) -> str:
    """Hash (hex) of an entry that follows the hash `previous` (hex)."""
    return hashlib.sha256(bytes.fromhex(previous) + entry).hexdigest()


def now() -> str:
    """The time as entries tell it: UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Head:
    """Where a file stands: an anchor for somebody else to keep.

    Attributes:
        rows: Number of entries.
        sha256: Hash of the last one, or what the chain begins with: 64 hexadecimal digits, or their first 32.
    """

    rows: int
    sha256: str

    def to_text(self) -> str:
        """The anchor in 128 bits of the hash, for messages."""
        return f"{self.rows}:{self.sha256[:SHORT]}"

    @classmethod
    def from_text(cls, text: str) -> "Head":
        """Read what `to_text` wrote.

        Raises:
            PrivacyError: It is something else.
        """
        if not _ANCHOR.fullmatch(text):
            raise PrivacyError("an anchor is a number of rows, a colon and 32 digits 0-9 a-f")
        rows, digest = text.split(":")
        return cls(int(rows), digest)

    def follow(self, entry: str, digest: str) -> bytes:
        """The bytes of the entry that follows here.

        Raises:
            PrivacyError: Its hash is another.
        """
        if type(entry) is not str:
            raise PrivacyError("its text is none")
        content = entry.encode()
        if chained(self.sha256, content) != digest:
            raise PrivacyError("its hash does not follow from the row before and its text")
        return content


class ChainedFile:
    """The file at `path`, which `_make` made; opening verifies all of it.

    Each method reads and verifies what other processes have added since.

    A subclass says what it is and what it remembers of each entry.

    Attributes:
        origin: What the chain begins with: 64 hexadecimal digits.

    Raises:
        PrivacyError: Of the subclass's kind: there is no such file, it is damaged, or it cannot be read.
    """

    what: ClassVar[str]
    """What people call it."""
    table: ClassVar[str]
    """Name of the table of its entries."""
    more: ClassVar[dict[str, str]] = {}
    """Further tables, by name, as SQL that makes them."""
    if_missing: ClassVar[str]
    """Why a missing file is not replaced."""
    error: ClassVar[type[PrivacyError]]

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self.origin = ""
        self._head = Head(0, "")
        with self._connected() as database:
            database.execute("BEGIN")
            self._check_file(database)
            self._catch_up(database)

    @classmethod
    def _make(cls, path: Path, begin: Callable[[sqlite3.Connection, Head], None] = lambda _, __: None) -> None:
        """Make a new file, readable by its owner alone.

        Args:
            path: Of the file.
            begin: Puts in what it has from the start.

        Raises:
            PrivacyError: There is a file at `path` already, or it cannot be written.
        """
        try:
            with new_file(path) as scratch, cls._reported(path), contextlib.closing(_open(scratch)) as database:
                database.execute("BEGIN IMMEDIATE")
                for statement in cls.scheme().values():
                    database.execute(statement)
                origin = secrets.token_hex(32)
                database.execute("INSERT INTO origin VALUES (?)", (origin,))
                begin(database, Head(0, origin))
                database.execute("COMMIT")
        except FileExistsError:
            raise cls.error(f"{path} is there already: a {cls.what} is never replaced") from None
        except StorageError as exc:
            raise cls.error(str(exc)) from exc

    @property
    def head(self) -> Head:
        """Where it stands: what somebody else may keep as an anchor."""
        with self._reading():
            return self._head

    def holds(self, anchor: Head) -> bool:
        """Whether it once stood at `anchor`; False says that it was rolled back, cloned or made anew."""
        with self._reading() as database:
            if not 0 <= anchor.rows <= self._head.rows:
                return False
            found = self.origin
            if anchor.rows:
                query = f"SELECT hash FROM {self.table} WHERE number = ?"  # noqa: S608 - our own name
                (found,) = database.execute(query, (anchor.rows,)).fetchone()
        return len(anchor.sha256) >= SHORT and found.startswith(anchor.sha256)

    def _take(self, content: bytes, digest: str) -> None:
        """Check what the entry after `_head` says, and remember of it what is needed.

        Args:
            content: Its text.
            digest: Its hash, which follows.

        Raises:
            PrivacyError: It is no entry of this kind.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as database:
            database.execute("BEGIN")
            self._catch_up(database)
            yield database

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction; others wait from its beginning on, so that two of them cannot both follow the same head."""
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            self._catch_up(database)
            yield database
            database.execute("COMMIT")
            database.execute("BEGIN")  # another process may write between two queries
            self._catch_up(database)

    @classmethod
    def _add(cls, database: sqlite3.Connection, head: Head, entries: Sequence[bytes]) -> Head:
        """Put entries after `head`, in a transaction; returns where the file then stands."""
        for entry in entries:
            head = Head(head.rows + 1, chained(head.sha256, entry))
            insert = f"INSERT INTO {cls.table} VALUES (?, ?, ?)"  # noqa: S608 - our own name
            database.execute(insert, (head.rows, entry.decode(), head.sha256))
        return head

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection of this block's own: none is there to be carried into a forked process."""
        with self._lock, self._reported(self._path), contextlib.closing(_open(self._path)) as database:
            yield database

    @classmethod
    def scheme(cls) -> dict[str, str]:
        """Its tables by name, as SQL that makes them."""
        entries = f"CREATE TABLE {cls.table} (number INTEGER PRIMARY KEY, entry TEXT NOT NULL, hash TEXT NOT NULL)"
        return {"origin": "CREATE TABLE origin (hash TEXT NOT NULL)", cls.table: entries, **cls.more}

    def _damaged(self, how: str) -> PrivacyError:
        return self.error(f"the {self.what} {self._path} is damaged{how}")

    def _check_file(self, database: sqlite3.Connection) -> None:
        """Look at what SQLite itself believes: a trigger could undo a row as soon as it is written."""
        found = dict(database.execute("SELECT name, sql FROM sqlite_master").fetchall())
        if found != self.scheme() or database.execute("PRAGMA journal_mode").fetchone() != ("delete",):
            raise self.error(f"{self._path} is no {self.what}, or not one of this version")
        if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise self._damaged(": SQLite finds its pages inconsistent")

    def _catch_up(self, database: sqlite3.Connection) -> None:
        """Verify what was added since the last look, and that what was known is still there; in a transaction."""
        origins = database.execute("SELECT hash FROM origin").fetchall()
        if len(origins) != 1 or not is_sha256(origins[0][0]) or self.origin not in ("", origins[0][0]):
            raise self._damaged(": its beginning is another")
        if not self.origin:
            self.origin = origins[0][0]
            self._head = Head(0, self.origin)
        known = self._head
        last = database.execute(f"SELECT hash FROM {self.table} WHERE number = ?", (known.rows,)).fetchone()  # noqa: S608
        if known.rows and last != (known.sha256,):
            raise self._damaged(": rows that it had are gone or changed")
        new = database.execute(
            f"SELECT number, entry, hash FROM {self.table} WHERE number > ? ORDER BY number",  # noqa: S608
            (known.rows,),
        )
        for number, entry, digest in new:
            try:
                content = self._head.follow(entry, digest)
                if number != self._head.rows + 1:
                    raise PrivacyError(f"it stands where row {self._head.rows + 1} belongs")
                self._take(content, digest)
            except PrivacyError as exc:
                raise self._damaged(f" at row {number}: {exc}") from exc
            self._head = Head(number, digest)
        if database.execute(f"SELECT count(*) FROM {self.table}").fetchone() != (self._head.rows,):  # noqa: S608
            raise self._damaged(": it has rows outside the chain")

    @classmethod
    @contextlib.contextmanager
    def _reported(cls, path: Path) -> Iterator[None]:
        """Turn SQLite's errors in the block into one that names the file and the remedy."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as exc:  # the latter where SQLite's message quotes a damaged page
            reasons = {
                sqlite3.SQLITE_FULL: f"the disk is full: {FREE_SOME}",
                sqlite3.SQLITE_BUSY: f"another process has kept it locked for {_PATIENCE:g} seconds",
                sqlite3.SQLITE_CANTOPEN: f"it is not there, or cannot be opened; {cls.if_missing}",
            }
            code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            raise cls.error(f"the {cls.what} {path} cannot be used: {reasons.get(code, exc)}") from exc


def _open(path: Path) -> sqlite3.Connection:
    # Without `mode=rw` SQLite would make an empty file where the right one is missing.
    address = f"{path.absolute().as_uri()}?mode=rw"
    database = sqlite3.connect(address, uri=True, timeout=_PATIENCE, isolation_level=None)
    try:
        # FULL syncs the file but not the folder: a power cut could bring back the journal, which undoes the row.
        for pragma in ("synchronous=EXTRA", "trusted_schema=OFF", "cell_size_check=ON"):
            database.execute(f"PRAGMA {pragma}")
    except BaseException:
        database.close()
        raise
    return database
