"""Reading a whole log, and the ledger beside it, as fast as two cores allow: every entry is hashed and checked.

Pieces of a log are scanned apart, each by the stored hash before its first entry, so that they need not wait for each
other. What is found is the same in any pieces.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from fedglm.audit.records.ledger_scan import ledger_rows
from fedglm.audit.records.log_summary import Scan
from fedglm.audit.records.release_entries import EntryReader, ReleaseEntry
from fedglm.audit.records.untrusted_sqlite import check_scheme, hash_before, opened
from fedglm.core.processes import KilledError, in_processes
from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.log.chained_file import chained
from fedglm.privacy.log.signed_log import SignedLog

PIECE: Final = 50_000
"""Entries of a piece; a log of no more is read without another process."""


def scan(log: Path, ledger: Path | None = None, piece: int = PIECE) -> Scan:
    """Read a log, and hold each entry about the ledger to the ledger's row.

    Args:
        log: Path of the log's file.
        ledger: Path of the ledger's file, of a site.
        piece: Entries of a piece.

    Raises:
        LogError: The file cannot be read at all.
    """
    with ThreadPoolExecutor() as threads:
        list(threads.map(_look, filter(None, (log, ledger))))
    with opened(log, again=True) as database:
        check_scheme(database, log, SignedLog.scheme())
        count, least = database.execute("SELECT count(*), min(number) FROM entries").fetchone()
    if count and least != 1:
        return Scan(1, fault=f"entry {least}: a log begins with entry 1")
    pieces = [(log, ledger, start, piece) for start in range(1, max(count, 1) + 1, piece)]
    try:
        with contextlib.closing(in_processes(_piece, pieces)) as found:
            whole = next(found)
            while not whole.fault and (later := next(found, None)) is not None:
                whole.join(later)
    except KilledError as exc:
        raise LogError(f"{log} was not read to the end: {exc}") from exc
    return whole


def _look(path: Path) -> None:
    """Have all pages of a file checked, for all pieces; SQLite lets other threads run meanwhile."""
    with opened(path):
        pass


def _piece(log: Path, ledger: Path | None, start: int, entries: int) -> Scan:
    """One piece; what follows the first fault in it is not read."""
    found, reader = Scan(start), EntryReader()
    # The log within: what goes wrong with it is told as the log's.
    with ledger_rows(ledger) if ledger else contextlib.nullcontext() as rows, opened(log, again=True) as database:
        previous = hash_before(database, "entries", start)
        if not previous:
            raise LogError(f"the log {log} is damaged at entry {start}: what comes before it is missing")
        query = "SELECT number, entry, hash FROM entries WHERE number >= ? ORDER BY number LIMIT ?"
        for number, stored in enumerate(database.execute(query, (start, entries)), start):
            try:
                text, content, previous = _following(previous, number, *stored)
                entry = reader.read(text, number)
                found.take(number, content, previous, entry)
                if rows is not None and isinstance(entry, ReleaseEntry) and (fault := rows.fault(entry)):
                    found.blame_ledger(number, f"row {entry.row} of the ledger {fault}")
                    rows = None  # what comes after it follows from nothing
            except LogError:  # the ledger cannot be read
                raise
            except PrivacyError as exc:
                found.fault = f"entry {number}: {exc}"
                break
    return found


def _following(previous: str, number: int, place: object, text: object, digest: object) -> tuple[str, bytes, str]:
    """Text of an entry, the same in UTF-8, and its hash, which follows from the one before it."""
    if place != number or type(text) is not str or type(digest) is not str:
        raise PrivacyError("it is missing, or another stands in its place")
    content = text.encode()
    if chained(previous, content) != digest:
        raise PrivacyError("its hash does not follow from the entry before and its text")
    return text, content, digest
