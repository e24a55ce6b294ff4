"""A file of hash-chained entries: the file format of the privacy ledger and of the signed log.

One SQLite file has entries of canonical JSON, each with the SHA-256 of the hash before it and of its own text, so that
an entry that was changed, moved or removed is detected when the file is opened. The chain begins with a random number:
no two files share a hash. Whoever can write the file can also compute an entire new chain, or restore an old copy. That
is detected only with an anchor, a `Head` that somebody else kept, which `contains` checks.

Several processes may use a file at once. Written entries are durable on the disk when the call returns.
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

ANCHOR_DIGITS: Final = 32
"""Number of hexadecimal digits of a hash in a shortened anchor."""

_HASH: Final = re.compile(r"[0-9a-f]{64}")
_ANCHOR: Final = re.compile(rf"[0-9]{{1,9}}:[0-9a-f]{{{ANCHOR_DIGITS}}}")
_BUSY_TIMEOUT: Final = 120.0
"""Seconds that a process waits while another one writes."""


def is_sha256(value: object) -> bool:
    """Return whether `value` is 64 lower-case hexadecimal digits."""
    return type(value) is str and _HASH.fullmatch(value) is not None


def compute_chain_hash(previous: str, entry: bytes) -> str:
    """Compute the hash (hex) of an entry after the hash `previous` (hex)."""
    return hashlib.sha256(bytes.fromhex(previous) + entry).hexdigest()


def utc_now() -> str:
    """Return the current time as in entries: UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Head:
    """The head of a file's hash chain: an anchor for somebody else to keep.

    Attributes:
        rows: Number of entries.
        sha256: Hash of the last entry, or the chain's origin: 64 hexadecimal digits, or their first 32.
    """

    rows: int
    sha256: str

    def to_text(self) -> str:
        """Return the anchor with 128 bits of the hash, for messages."""
        return f"{self.rows}:{self.sha256[:ANCHOR_DIGITS]}"

    @classmethod
    def from_text(cls, text: str) -> "Head":
        """Parse what `to_text` returned.

        Raises:
            PrivacyError: The text is no anchor.
        """
        if not _ANCHOR.fullmatch(text):
            raise PrivacyError("an anchor is a number of rows, a colon and 32 digits 0-9 a-f")
        rows, digest = text.split(":")
        return cls(int(rows), digest)

    def verify_next(self, entry: str, digest: str) -> bytes:
        """Check the hash of the next entry after this head; return the entry's bytes.

        Args:
            entry: Text of the entry.
            digest: Hash of the entry (hex), as in the file.

        Raises:
            PrivacyError: The hash does not follow from this head and the entry.
        """
        if type(entry) is not str:
            raise PrivacyError("its text is none")
        content = entry.encode()
        if compute_chain_hash(self.sha256, content) != digest:
            raise PrivacyError("its hash does not follow from the row before and its text")
        return content


class ChainedFile:
    """A file of hash-chained entries at `path`, which `_create_file` made; opening it verifies all entries.

    Each method reads and verifies the entries that other processes have added since. A subclass defines the class
    variables, and `_accept_entry`.

    Attributes:
        origin: Random number at the beginning of the chain: 64 hexadecimal digits.

    Raises:
        PrivacyError: There is no such file, it is damaged, or it cannot be read; of the subclass's `error`.
    """

    noun: ClassVar[str]
    """Noun for the file in messages."""
    table: ClassVar[str]
    """Name of the entries' table."""
    extra_tables: ClassVar[dict[str, str]] = {}
    """SQL statements that create further tables, by table name."""
    missing_reason: ClassVar[str]
    """Reason in messages why a missing file is not replaced."""
    error: ClassVar[type[PrivacyError]]
    """Type of the errors."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self.origin = ""
        self._head = Head(0, "")
        with self._connected() as database:
            database.execute("BEGIN")
            self._check_file(database)
            self._read_new_entries(database)

    @classmethod
    def _create_file(cls, path: Path, begin: Callable[[sqlite3.Connection, Head], None] = lambda _, __: None) -> None:
        """Create a new file, readable by its owner only.

        Args:
            path: Path of the new file.
            begin: Writes the initial entries; takes the database, in a transaction, and the head.

        Raises:
            PrivacyError: The file exists already, or cannot be written; of the subclass's `error`.
        """
        try:
            with (
                new_file(path) as scratch,
                cls._map_errors(path),
                contextlib.closing(_open_database(scratch)) as database,
            ):
                database.execute("BEGIN IMMEDIATE")
                for statement in cls.schema().values():
                    database.execute(statement)
                origin = secrets.token_hex(32)
                database.execute("INSERT INTO origin VALUES (?)", (origin,))
                begin(database, Head(0, origin))
                database.execute("COMMIT")
        except FileExistsError:
            raise cls.error(f"{path} is there already: a {cls.noun} is never replaced") from None
        except StorageError as exc:
            raise cls.error(str(exc)) from exc

    @property
    def head(self) -> Head:
        """Current head of the chain, which somebody else may keep as an anchor."""
        with self._reading():
            return self._head

    def contains(self, anchor: Head) -> bool:
        """Return whether `anchor` is in the chain; if not, the file was rolled back, cloned or replaced."""
        with self._reading() as database:
            if not 0 <= anchor.rows <= self._head.rows:
                return False
            digest = self.origin
            if anchor.rows:
                query = f"SELECT hash FROM {self.table} WHERE number = ?"  # noqa: S608 - our own name
                (digest,) = database.execute(query, (anchor.rows,)).fetchone()
        return len(anchor.sha256) >= ANCHOR_DIGITS and digest.startswith(anchor.sha256)

    def _accept_entry(self, content: bytes, digest: str) -> None:
        """Check the content of the entry after `_head`, and update the subclass's state with it.

        Args:
            content: Text of the entry.
            digest: Hash of the entry (hex), already verified.

        Raises:
            PrivacyError: The text is no entry of this kind of file.
        """
        raise NotImplementedError

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._connected() as database:
            database.execute("BEGIN")
            self._read_new_entries(database)
            yield database

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Open a write transaction; other writers wait from its start, so that no two continue from the same head."""
        with self._connected() as database:
            database.execute("BEGIN IMMEDIATE")
            self._read_new_entries(database)
            yield database
            database.execute("COMMIT")
            database.execute("BEGIN")  # another process may write between two queries
            self._read_new_entries(database)

    @classmethod
    def _append_entries(cls, database: sqlite3.Connection, head: Head, entries: Sequence[bytes]) -> Head:
        """Append entries after `head`, in a transaction; return the new head."""
        for entry in entries:
            head = Head(head.rows + 1, compute_chain_hash(head.sha256, entry))
            insert = f"INSERT INTO {cls.table} VALUES (?, ?, ?)"  # noqa: S608 - our own name
            database.execute(insert, (head.rows, entry.decode(), head.sha256))
        return head

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """Open a connection for this block only: there is none that a forked process could inherit."""
        with self._lock, self._map_errors(self._path), contextlib.closing(_open_database(self._path)) as database:
            yield database

    @classmethod
    def schema(cls) -> dict[str, str]:
        """Return the SQL statements that create the tables, by table name."""
        entries = f"CREATE TABLE {cls.table} (number INTEGER PRIMARY KEY, entry TEXT NOT NULL, hash TEXT NOT NULL)"
        return {"origin": "CREATE TABLE origin (hash TEXT NOT NULL)", cls.table: entries, **cls.extra_tables}

    def _make_damage_error(self, how: str) -> PrivacyError:
        return self.error(f"the {self.noun} {self._path} is damaged{how}")

    def _check_file(self, database: sqlite3.Connection) -> None:
        """Check the database's schema and settings: a trigger could undo a row as soon as it is written."""
        schema = dict(database.execute("SELECT name, sql FROM sqlite_master").fetchall())
        if schema != self.schema() or database.execute("PRAGMA journal_mode").fetchone() != ("delete",):
            raise self.error(f"{self._path} is no {self.noun}, or not one of this version")
        if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise self._make_damage_error(": SQLite finds its pages inconsistent")

    def _read_new_entries(self, database: sqlite3.Connection) -> None:
        """Verify the entries added since the last call, and that the known ones are still there; in a transaction."""
        origins = database.execute("SELECT hash FROM origin").fetchall()
        if len(origins) != 1 or not is_sha256(origins[0][0]) or self.origin not in ("", origins[0][0]):
            raise self._make_damage_error(": its beginning is another")
        if not self.origin:
            self.origin = origins[0][0]
            self._head = Head(0, self.origin)
        known = self._head
        last = database.execute(f"SELECT hash FROM {self.table} WHERE number = ?", (known.rows,)).fetchone()  # noqa: S608
        if known.rows and last != (known.sha256,):
            raise self._make_damage_error(": rows that it had are gone or changed")
        new = database.execute(
            f"SELECT number, entry, hash FROM {self.table} WHERE number > ? ORDER BY number",  # noqa: S608
            (known.rows,),
        )
        for number, entry, digest in new:
            try:
                content = self._head.verify_next(entry, digest)
                if number != self._head.rows + 1:
                    raise PrivacyError(f"it stands where row {self._head.rows + 1} belongs")
                self._accept_entry(content, digest)
            except PrivacyError as exc:
                raise self._make_damage_error(f" at row {number}: {exc}") from exc
            self._head = Head(number, digest)
        if database.execute(f"SELECT count(*) FROM {self.table}").fetchone() != (self._head.rows,):  # noqa: S608
            raise self._make_damage_error(": it has rows outside the chain")

    @classmethod
    @contextlib.contextmanager
    def _map_errors(cls, path: Path) -> Iterator[None]:
        """Map SQLite's errors in the block to one that names the file and the remedy."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as exc:  # the latter where SQLite's message quotes a damaged page
            reasons = {
                sqlite3.SQLITE_FULL: f"the disk is full: {FREE_SOME}",
                sqlite3.SQLITE_BUSY: f"another process has kept it locked for {_BUSY_TIMEOUT:g} seconds",
                sqlite3.SQLITE_CANTOPEN: f"it is not there, or cannot be opened; {cls.missing_reason}",
            }
            code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
            raise cls.error(f"the {cls.noun} {path} cannot be used: {reasons.get(code, exc)}") from exc


def _open_database(path: Path) -> sqlite3.Connection:
    # Without `mode=rw` SQLite would create an empty file where the file is missing.
    address = f"{path.absolute().as_uri()}?mode=rw"
    database = sqlite3.connect(address, uri=True, timeout=_BUSY_TIMEOUT, isolation_level=None)
    try:
        # FULL syncs the file but not the folder: after a power cut the journal could reappear, which undoes the row.
        for pragma in ("synchronous=EXTRA", "trusted_schema=OFF", "cell_size_check=ON"):
            database.execute(f"PRAGMA {pragma}")
    except BaseException:
        database.close()
        raise
    return database
