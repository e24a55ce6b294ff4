"""The privacy ledger of a node: what every release so far has spent, on the disk before anything leaves.

One SQLite file holds rows of canonical JSON, each with the SHA-256 of the hash before it and of its own text, so that a
row changed, moved or taken out is seen when the file is opened. The chain begins with a random number: no two ledgers
share a hash. Who can write the file can also compute a whole new chain, or put back an old copy. That is seen only with
an anchor, a `Head` that somebody else kept: the server gives back the last one it got, and `holds` answers.

A ledger belongs to data, not to a run: the rows of a data set, by its name or its content, add up for good, over all
runs and federations. A charge stays though its message is lost. A retry sends the same bytes, which `released` knows,
and is not charged again; fresh noise is a fresh charge.
"""

import contextlib
import math
import secrets
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from fedglm.privacy.accountant import Spent, spent, within
from fedglm.privacy.charges import SHORT, Budget, Charge, Head, Row, Stretch, is_sha256, related, stretches
from fedglm.privacy.durable import FREE_SOME, StorageError, new_file
from fedglm.privacy.errors import LedgerError, PrivacyError, Refusal

BUDGET_RULE: Final = "epsilon-budget"
"""The rule under which a charge is refused that would overspend."""

_PATIENCE: Final = 120.0
"""Seconds that a process waits for the charge of another."""
_SCHEMA: Final = {
    "origin": "CREATE TABLE origin (hash TEXT NOT NULL)",
    "charges": "CREATE TABLE charges (number INTEGER PRIMARY KEY, entry TEXT NOT NULL, hash TEXT NOT NULL)",
}


class Ledger:
    """The ledger in the file at `path`, which `create` made; several processes may use it at once.

    Opening verifies all of it. Each method reads and verifies what other processes have added since.

    Raises:
        LedgerError: There is no such file, it is damaged, or it cannot be read. A lost ledger is not replaced by an
            empty one, for that would forget what was spent.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._origin: str | None = None
        self._rows: list[Row] = []
        with self._connected() as database:
            database.execute("BEGIN")
            self._check_file(database)
            self._catch_up(database)

    @classmethod
    def create(cls, path: Path) -> "Ledger":
        """An empty ledger in a new file, readable by its owner alone: once in the life of a node.

        Raises:
            LedgerError: There is a file at `path` already, or it cannot be written.
        """
        try:
            with new_file(path) as scratch, _reported(path), contextlib.closing(_open(scratch)) as database:
                database.execute("BEGIN IMMEDIATE")
                for statement in _SCHEMA.values():
                    database.execute(statement)
                database.execute("INSERT INTO origin VALUES (?)", (secrets.token_hex(32),))
                database.execute("COMMIT")
        except FileExistsError:
            raise LedgerError(f"{path} is there already: a ledger is never replaced") from None
        except StorageError as exc:
            raise LedgerError(str(exc)) from exc
        return cls(path)

    @property
    def head(self) -> Head:
        """Where the ledger stands: what the server keeps as an anchor."""
        self.rows()
        return self._head

    def rows(self) -> list[Row]:
        """All rows, the oldest first."""
        with self._connected() as database:
            database.execute("BEGIN")
            self._catch_up(database)
        return list(self._rows)

    def summary(self) -> list[Stretch]:
        """All rows for printing, those merged that differ only in round, time and release."""
        return list(stretches(self.rows()))

    def history(self, data_set: str, commitment: str) -> list[Row]:
        """The rows that count against a data set: see `privacy.charges.related`."""
        return related(self.rows(), data_set, commitment)

    def spent(self, data_set: str, commitment: str, delta: float) -> Spent:
        """What the data set has spent; infinite once something was released without noise.

        Raises:
            PrivacyError: `delta` is not between 1e-10 and 0.1.
        """
        return _spent(self.history(data_set, commitment), delta)

    def holds(self, anchor: Head) -> bool:
        """Whether this ledger once stood at `anchor`; False says that it was rolled back, cloned or made anew."""
        rows = self.rows()
        if not 0 <= anchor.rows <= len(rows):
            return False
        found = rows[anchor.rows - 1].hash if anchor.rows else self._origin or ""
        return len(anchor.sha256) >= SHORT and found.startswith(anchor.sha256)

    def released(self, release: str) -> bool:
        """Whether bytes of this SHA-256 have been charged, so that a retry may send them."""
        return any(row.charge.release == release for row in self.rows())

    def check(self, charge: Charge, budget: Budget | None, *others: Charge) -> None:
        """Refuse what `charge` would refuse, and write nothing: before training, so that none is in vain.

        Raises:
            Refusal: Rule `epsilon-budget`.
        """
        _check(self.rows(), [charge, *others], budget)

    def charge(self, charge: Charge, budget: Budget | None, *others: Charge) -> Head:
        """Write a charge down; on the disk for good when this returns. Only then may the release leave.

        Args:
            charge: The release.
            budget: What the data set may spend in all; None where the site sets no limit.
            others: What leaves in the same message, from the same data set: all are written, or none.

        Raises:
            Refusal: Rule `epsilon-budget`: with it, the data set would have spent more than the budget. Nothing was
                written.
            LedgerError: It could not be written, or the ledger is damaged; the release must not leave.
        """
        with self._connected() as database:
            # Others wait from here on, so that two of them cannot spend the same rest.
            database.execute("BEGIN IMMEDIATE")
            self._catch_up(database)
            _check(self._rows, [charge, *others], budget)
            head, time, rows = self._head, datetime.now(UTC).isoformat(timespec="seconds"), []
            for each in (charge, *others):
                row, entry = Row.after(head, time, each)
                database.execute("INSERT INTO charges VALUES (?, ?, ?)", (row.number, entry, row.hash))
                head = Head(row.number, row.hash)
                rows.append(row)
            database.execute("COMMIT")
            self._rows += rows
            return self._head

    @property
    def _head(self) -> Head:
        return Head(len(self._rows), self._rows[-1].hash if self._rows else self._origin or "")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        """A connection of this block's own: none is there to be carried into a forked process."""
        with self._lock, _reported(self._path), contextlib.closing(_open(self._path)) as database:
            yield database

    def _check_file(self, database: sqlite3.Connection) -> None:
        """Look at what SQLite itself believes: a trigger could undo a charge as soon as it is written."""
        found = dict(database.execute("SELECT name, sql FROM sqlite_master").fetchall())
        if found != _SCHEMA or database.execute("PRAGMA journal_mode").fetchone() != ("delete",):
            raise LedgerError(f"{self._path} is no ledger, or not one of this version")
        if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
            raise LedgerError(f"the ledger {self._path} is damaged: SQLite finds its pages inconsistent")

    def _catch_up(self, database: sqlite3.Connection) -> None:
        """Verify what was added since the last look, and that what was known is still there; in a transaction."""
        known = self._head
        origins = database.execute("SELECT hash FROM origin").fetchall()
        if len(origins) != 1 or not is_sha256(origins[0][0]) or self._origin not in (None, origins[0][0]):
            raise LedgerError(f"the ledger {self._path} is damaged: its beginning is another")
        self._origin = origins[0][0]
        last = database.execute("SELECT hash FROM charges WHERE number = ?", (known.rows,)).fetchone()
        if known.rows and last != (known.sha256,):
            raise LedgerError(f"the ledger {self._path} is damaged: rows that it had are gone or changed")
        new = database.execute(
            "SELECT number, entry, hash FROM charges WHERE number > ? ORDER BY number", (known.rows,)
        )
        for number, entry, digest in new:
            try:
                row = Row.read(self._head, entry, digest)
            except PrivacyError as exc:
                raise LedgerError(f"the ledger {self._path} is damaged at row {number}: {exc}") from exc
            if row.number != number:
                raise LedgerError(f"the ledger {self._path} is damaged: its row {row.number} stands at {number}")
            self._rows.append(row)
        if database.execute("SELECT count(*) FROM charges").fetchone() != (len(self._rows),):
            raise LedgerError(f"the ledger {self._path} is damaged: it has rows outside the chain")


def _check(rows: Iterable[Row], charges: Sequence[Charge], budget: Budget | None) -> None:
    first = charges[0]
    if any((each.data_set, each.commitment) != (first.data_set, first.commitment) for each in charges):
        raise PrivacyError("what is charged together is of one data set")
    if budget is None:
        return
    earlier = [row.charge.mechanism for row in related(rows, first.data_set, first.commitment)]
    new = [each.mechanism for each in charges]
    limit = f"epsilon {budget.epsilon:g} at delta {budget.delta:g}"
    if None in new:
        raise Refusal(BUDGET_RULE, f"a release without noise stays within no budget, and {limit} is set")
    if None in earlier:
        raise Refusal(BUDGET_RULE, f"data of this set was released without noise before, and {limit} is set")
    events = [mechanism.event() for mechanism in (*earlier, *new) if mechanism is not None]
    if not within(events, budget.epsilon, budget.delta):
        # What was spent before is the site's own affair; a refusal may be told to the server.
        raise Refusal(BUDGET_RULE, f"with what was spent before, this release would exceed {limit}")


def _spent(rows: Iterable[Row], delta: float) -> Spent:
    mechanisms = [row.charge.mechanism for row in rows]
    noised = spent([mechanism.event() for mechanism in mechanisms if mechanism is not None], delta)
    return Spent(math.inf, None, None, math.inf, delta) if None in mechanisms else noised


def _open(path: Path) -> sqlite3.Connection:
    # Without `mode=rw` SQLite would make an empty file where the ledger is missing.
    address = f"{path.absolute().as_uri()}?mode=rw"
    database = sqlite3.connect(address, uri=True, timeout=_PATIENCE, isolation_level=None)
    try:
        # FULL syncs the file but not the folder: a power cut could bring back the journal, which undoes the charge.
        for pragma in ("synchronous=EXTRA", "trusted_schema=OFF", "cell_size_check=ON"):
            database.execute(f"PRAGMA {pragma}")
    except BaseException:
        database.close()
        raise
    return database


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn SQLite's errors in the block into a `LedgerError` that names the ledger and the remedy."""
    try:
        yield
    except (sqlite3.Error, UnicodeDecodeError) as exc:  # the latter where SQLite's message quotes a damaged page
        reasons = {
            sqlite3.SQLITE_FULL: f"the disk is full: {FREE_SOME}",
            sqlite3.SQLITE_BUSY: f"another process has kept it locked for {_PATIENCE:g} seconds",
            sqlite3.SQLITE_CANTOPEN: "it is not there, or cannot be opened; a new one would forget what was spent",
        }
        code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        raise LedgerError(f"the ledger {path} cannot be used: {reasons.get(code, exc)}") from exc
