"""Reads a whole ledger, comparing each row with the log entry about it and with the row before it."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedglm.audit.records.log_summary import LogScan
from fedglm.audit.records.release_entries import ReleaseEntry
from fedglm.audit.records.untrusted_sqlite import UNREADABLE, check_schema, open_untrusted, read_previous_hash
from fedglm.privacy.errors import LogError
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.chained_file import compute_chain_hash
from fedglm.privacy.log.entries import TIME

_ROW_END: Final = re.compile(TIME + r'"\}')
_ATTEMPT: Final = re.compile(r'(?:"id":"([0-9a-f]{32})".*?)?"purpose":"([a-z]+)".*?"release":"([0-9a-f]{64})"')


class LedgerRows:
    """Rows of a ledger, read in order, for the log entries that are about them."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database, self._path = database, path
        self._next: Iterator[tuple[int, object, object]] | None = None
        self._before = ""

    def find_fault(self, entry: ReleaseEntry) -> str:
        """Check that an entry's row has the text that the entry implies and follows from the row before.

        Args:
            entry: The next entry about a release.

        Returns:
            Description of the fault; empty if there is none.

        Raises:
            LogError: The ledger cannot be read.
        """
        try:
            if self._next is None:
                self._before = read_previous_hash(self._database, "charges", entry.row)
                query = "SELECT number, entry, hash FROM charges WHERE number >= ? ORDER BY number"
                self._next = self._database.execute(query, (entry.row,))
            stored, text, digest = next(self._next, (0, "", ""))
        except UNREADABLE as exc:
            raise LogError(f"{self._path} cannot be read: {exc}") from exc
        if not self._before:
            return "follows a row that is missing"
        if stored != entry.row:
            return "is missing"
        if digest != entry.row_hash:
            return "has another hash than it had"
        expected = entry.common.make_row_text(entry.row, entry.release, entry.round, entry.id)
        if type(text) is not str or not text.startswith(expected) or not _ROW_END.fullmatch(text, len(expected)):
            return "says something else"
        self._before = compute_chain_hash(self._before, text.encode())
        return "" if self._before == digest else "does not follow from the row before it"


def check_ledger(path: Path, log: LogScan) -> tuple[int, str]:
    """Find the first fault of a ledger: in a row that the log shows, which the scan has recorded, or in a later row.

    Args:
        path: Path of the ledger's file.
        log: Scan of the log, made together with this ledger.

    Returns:
        Number of rows, and a description of the first fault; empty if there is none.

    Raises:
        LogError: The file cannot be read at all.
    """
    if log.ledger_fault is not None:
        return log.rows, "entry {}: {}".format(*log.ledger_fault)
    rows, charged = log.rows, set[bytes]()
    with open_untrusted(path, again=True) as database:
        check_schema(database, path, Ledger.schema())
        (first,) = database.execute("SELECT min(number) FROM charges").fetchone()
        if first not in (None, 1):
            return 0, f"row {first}: a ledger begins with row 1"
        before = read_previous_hash(database, "charges", rows + 1)
        if not before:
            return rows, f"row {rows + 1}: what comes before it is missing"
        query = "SELECT number, entry, hash FROM charges WHERE number > ? ORDER BY number"
        for number, (place, text, digest) in enumerate(database.execute(query, (rows,)), rows + 1):
            before = compute_chain_hash(before, str(text).encode())
            if place != number or before != digest:
                return rows, f"row {number}: its hash does not follow from the row before and its text"
            attempt = _parse_attempt(str(text))
            if not attempt or attempt in charged or attempt in log.attempts:
                return rows, f"row {number}: it charges for nothing, or for what was charged before"
            charged.add(attempt)
            rows = number
    return rows, ""


def _parse_attempt(text: str) -> bytes:
    """Return the key of what a row charges for once, as in `ReleaseEntry.attempt`; empty if the text is no row."""
    match = _ATTEMPT.search(text)
    return bytes.fromhex(match[1] or match[3]) + match[2].encode() if match else b""


@contextlib.contextmanager
def open_ledger_rows(path: Path) -> Iterator[LedgerRows]:
    """Open the ledger at a path for reading its rows.

    Raises:
        LogError: The ledger cannot be read.
    """
    with open_untrusted(path, again=True) as database:
        yield LedgerRows(database, path)
