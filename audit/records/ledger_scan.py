"""Reading a whole ledger: each row is held to the entry of the log that is about it, and to the row before it."""

import contextlib
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fedglm.audit.records.log_summary import Scan
from fedglm.audit.records.release_entries import ReleaseEntry
from fedglm.audit.records.untrusted_sqlite import UNREADABLE, check_scheme, hash_before, opened
from fedglm.privacy.errors import LogError
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.chained_file import chained
from fedglm.privacy.log.entries import TIME

_ENDING: Final = re.compile(TIME + r'"\}')
_CHARGED: Final = re.compile(r'(?:"id":"([0-9a-f]{32})".*?)?"purpose":"([a-z]+)".*?"release":"([0-9a-f]{64})"')


class LedgerRows:
    """Rows of a ledger, one after the other, for the entries that are about them."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database, self._path = database, path
        self._next: Iterator[tuple[int, object, object]] | None = None
        self._before = ""

    def fault(self, entry: ReleaseEntry) -> str:
        """What is wrong with an entry's row, whose text must be what the entry says, and follow from the row before.

        Returns:
            It; empty for nothing.

        Raises:
            LogError: The ledger cannot be read.
        """
        try:
            if self._next is None:
                self._before = hash_before(self._database, "charges", entry.row)
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
        told = entry.common.row_text(entry.row, entry.release, entry.round, entry.id)
        if type(text) is not str or not text.startswith(told) or not _ENDING.fullmatch(text, len(told)):
            return "says something else"
        self._before = chained(self._before, text.encode())
        return "" if self._before == digest else "does not follow from the row before it"


def check_ledger(path: Path, log: Scan) -> tuple[int, str]:
    """What is wrong with a ledger: with the rows that a log shows, which scanning that has found, or with later ones.

    Args:
        path: Of its file.
        log: That was scanned with it.

    Returns:
        Number of its rows, and the first thing that is wrong; empty for nothing.

    Raises:
        LogError: The file cannot be read at all.
    """
    if log.ledger_fault is not None:
        return log.rows, "entry {}: {}".format(*log.ledger_fault)
    rows, charged = log.rows, set[bytes]()
    with opened(path, again=True) as database:
        check_scheme(database, path, Ledger.scheme())
        (least,) = database.execute("SELECT min(number) FROM charges").fetchone()
        if least not in (None, 1):
            return 0, f"row {least}: a ledger begins with row 1"
        before = hash_before(database, "charges", rows + 1)
        if not before:
            return rows, f"row {rows + 1}: what comes before it is missing"
        query = "SELECT number, entry, hash FROM charges WHERE number > ? ORDER BY number"
        for number, (place, text, digest) in enumerate(database.execute(query, (rows,)), rows + 1):
            before = chained(before, str(text).encode())
            if place != number or before != digest:
                return rows, f"row {number}: its hash does not follow from the row before and its text"
            attempt = _attempt_of(str(text))
            if not attempt or attempt in charged or attempt in log.attempts:
                return rows, f"row {number}: it charges for nothing, or for what was charged before"
            charged.add(attempt)
            rows = number
    return rows, ""


def _attempt_of(text: str) -> bytes:
    """What a row charges for once, as `ReleaseEntry.attempt` has it; nothing where it is no row."""
    found = _CHARGED.search(text)
    return bytes.fromhex(found[1] or found[3]) + found[2].encode() if found else b""


@contextlib.contextmanager
def ledger_rows(path: Path) -> Iterator[LedgerRows]:
    """The rows of the ledger there; raises LogError where it cannot be read."""
    with opened(path, again=True) as database:
        yield LedgerRows(database, path)
