"""Reads a whole log, and the ledger beside it, as fast as two cores allow: every entry is hashed and checked.

Pieces of a log are scanned independently, each from the stored hash before its first entry, so that none waits for
another. The result is the same for any size of piece.
"""

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from fedglm.audit.records.ledger_scan import open_ledger_rows
from fedglm.audit.records.log_summary import LogScan
from fedglm.audit.records.release_entries import EntryReader, ReleaseEntry
from fedglm.audit.records.untrusted_sqlite import check_schema, open_untrusted, read_previous_hash
from fedglm.core.processes.worker_pool import KilledError, map_in_processes
from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.log.chained_file import compute_chain_hash
from fedglm.privacy.log.signed_log import SignedLog

PIECE: Final = 50_000
"""Entries per piece; a log of no more is read within this process."""


def scan_log(log: Path, ledger: Path | None = None, piece: int = PIECE) -> LogScan:
    """Read a log and compare each entry about the ledger with the ledger's row.

    Args:
        log: Path of the log's file.
        ledger: Path of the ledger's file, for a site.
        piece: Entries per piece.

    Raises:
        LogError: The file cannot be read at all.
    """
    with ThreadPoolExecutor() as threads:
        list(threads.map(_check_file, filter(None, (log, ledger))))
    with open_untrusted(log, again=True) as database:
        check_schema(database, log, SignedLog.schema())
        count, first = database.execute("SELECT count(*), min(number) FROM entries").fetchone()
    if count and first != 1:
        return LogScan(1, fault=f"entry {first}: a log begins with entry 1")
    pieces = [(log, ledger, start, piece) for start in range(1, max(count, 1) + 1, piece)]
    try:
        with contextlib.closing(map_in_processes(_scan_piece, pieces)) as scans:
            log_scan = next(scans)
            while not log_scan.fault and (later := next(scans, None)) is not None:
                log_scan.merge(later)
    except KilledError as exc:
        raise LogError(f"{log} was not read to the end: {exc}") from exc
    return log_scan


def _check_file(path: Path) -> None:
    """Check all pages of a file once for all pieces; SQLite lets other threads run meanwhile."""
    with open_untrusted(path):
        pass


def _scan_piece(log: Path, ledger: Path | None, start: int, entries: int) -> LogScan:
    """Scan one piece; nothing after its first fault is read."""
    log_scan, reader = LogScan(start), EntryReader()
    # The log is opened last, so that its errors are reported as the log's and not as the ledger's.
    with (
        open_ledger_rows(ledger) if ledger else contextlib.nullcontext() as rows,
        open_untrusted(log, again=True) as database,
    ):
        previous = read_previous_hash(database, "entries", start)
        if not previous:
            raise LogError(f"the log {log} is damaged at entry {start}: what comes before it is missing")
        query = "SELECT number, entry, hash FROM entries WHERE number >= ? ORDER BY number LIMIT ?"
        for number, stored in enumerate(database.execute(query, (start, entries)), start):
            try:
                text, content, previous = _check_chained(previous, number, *stored)
                entry = reader.read(text, number)
                log_scan.add_entry(number, content, previous, entry)
                if rows is not None and isinstance(entry, ReleaseEntry) and (fault := rows.find_fault(entry)):
                    log_scan.record_ledger_fault(number, f"row {entry.row} of the ledger {fault}")
                    rows = None  # no later row can follow from a wrong one
            except LogError:  # of the ledger, which cannot be read
                raise
            except PrivacyError as exc:
                log_scan.fault = f"entry {number}: {exc}"
                break
    return log_scan


def _check_chained(previous: str, number: int, place: object, text: object, digest: object) -> tuple[str, bytes, str]:
    """Check that an entry follows from the one before.

    Args:
        previous: Hash of the entry before, hex.
        number: Number that the entry must have.
        place: Stored number.
        text: Stored text.
        digest: Stored hash, hex.

    Returns:
        Text of the entry, the same in UTF-8, and its hash.

    Raises:
        PrivacyError: The entry is missing, or its hash does not follow.
    """
    if place != number or type(text) is not str or type(digest) is not str:
        raise PrivacyError("it is missing, or another stands in its place")
    content = text.encode()
    if compute_chain_hash(previous, content) != digest:
        raise PrivacyError("its hash does not follow from the entry before and its text")
    return text, content, digest
