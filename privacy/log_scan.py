"""Reading a whole log, and the ledger beside it, as fast as two cores allow: every entry is hashed, parsed and checked.

Pieces of a log are scanned apart, each by the stored hash before its first entry, so that they need not wait for each
other. Entries of which a log has many are counted by what they have in common; the others are kept as they are.
"""

import contextlib
import hashlib
import os
import re
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final, NamedTuple

from fedglm.privacy.canonical import canonical_json
from fedglm.privacy.chained_file import chained, is_sha256
from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.ledger import Ledger
from fedglm.privacy.log_entries import read_entry
from fedglm.privacy.merkle import leaf_hash
from fedglm.privacy.opened_evidence import UNREADABLE, opened, other_scheme
from fedglm.privacy.signed_log import SignedLog

PIECE: Final = 50_000
"""Entries of a piece; a log of no more is read without another process."""

TOLD: Final = 0.03
"""By so much an epsilon that a site told may differ from what the rows give: the accountants' own errors."""

_FALL: Final = 0.1
"""By so much an epsilon may fall from one release to the next: the accountant takes a coarser grid as steps add up."""

_CHARGES: Final = ("release", "charged")
_SAME: Final = ("data_set", "commitment", "purpose", "plan", "policy", "run")
_ROW: Final = (*_SAME, "mechanism", "release", "round")

_RELEASE: Final = re.compile(rb'"release":"([0-9a-f]{64})"')

GroupKey = tuple[Any, ...]


@dataclass
class Group:
    """Releases that differ in nothing but round, size and content.

    Attributes:
        fields: What they have in common: `_SAME`, mechanism, delta and codec.
        count: How many.
        first: Number of the first one's entry.
        rounds: The least and the greatest round.
        most_bytes: Of the largest.
        last: Number of the last one's entry.
        epoch: Number of the entry about the policy that was in force; 0 for none.
        told: Told by the first; None where none is.
        epsilon: Told by the last; None where none is.
        falls: Number of an entry whose epsilon is below the one before it, in this group; 0 for none.
    """

    fields: dict[str, Any]
    count: int
    first: int
    rounds: tuple[int, int]
    most_bytes: int
    told: float | None
    epsilon: float | None
    last: int
    epoch: int
    falls: int = 0

    def join(self, later: "Group") -> None:
        """Take in what a later piece has."""
        self.count += later.count
        self.rounds = min(self.rounds[0], later.rounds[0]), max(self.rounds[1], later.rounds[1])
        self.most_bytes = max(self.most_bytes, later.most_bytes)
        fell = _fell(self.epsilon, later.told)
        self.last = later.last
        self.falls = self.falls or later.falls or (later.first if fell else 0)
        self.epsilon = later.epsilon


class Accepted(NamedTuple):
    """An update that a server took: number of the entry, and what it says."""

    number: int
    run: str
    round: int
    site: str
    release: bytes
    size: int
    nonce: str
    anchor: str | None
    measures: dict[str, float] | None
    signature: bytes | None


@dataclass
class Scan:
    """What a log says, or a piece of one.

    Attributes:
        first: Number of its first entry.
        chain: Of each entry the first 16 bytes of its hash, which anchors show.
        leaves: Of each entry its leaf of the Merkle tree.
        rare: Entries of which a log has few.
        accepted: Updates that a server took.
        groups: Releases, by what they have in common.
        releases: Of each release its SHA-256 (32 bytes): number of its entry, size, round.
        rows: How many rows of the ledger they are about.
        first_row: The first of them; 0 for none.
        epoch: Number of the last entry about a policy; 0 for none.
        fault: The first thing that is wrong, with the entry that it is wrong with.
    """

    first: int
    chain: list[bytes] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)
    rare: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)
    groups: dict[GroupKey, Group] = field(default_factory=dict)
    releases: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    rows: int = 0
    first_row: int = 0
    epoch: int = 0
    fault: str = ""

    def join(self, later: "Scan") -> None:
        """Take in the next piece."""
        self.chain += later.chain
        self.leaves += later.leaves
        self.rare += later.rare
        self.accepted += later.accepted
        self.releases |= later.releases
        if later.rows and later.first_row != self.rows + 1:
            self.fault = (
                self.fault or f"entry {later.first}: or one after it: row {self.rows + 1} of the ledger is missing"
            )
        for known, group in later.groups.items():
            # What came before the first policy of a piece was under the last one of the pieces before it.
            key = known if known[0] else (self.epoch, *known[1:])
            group.epoch = key[0]
            if key in self.groups:
                self.groups[key].join(group)
            else:
                self.groups[key] = group
        self.rows += later.rows
        self.epoch = later.epoch or self.epoch
        self.fault = self.fault or later.fault


def scan(log: Path, ledger: Path | None = None) -> Scan:
    """Read a log, and hold each entry about the ledger to the ledger's row.

    Args:
        log: Path of the log's file.
        ledger: Path of the ledger's file, of a site.

    Raises:
        LogError: The file cannot be read at all.
    """
    if ledger is not None:
        with opened(ledger):
            pass  # its pages were checked, for all pieces
    with opened(log) as database:
        _check_scheme(database, log, SignedLog.scheme())
        count, least = database.execute("SELECT count(*), min(number) FROM entries").fetchone()
    if count and least != 1:
        return Scan(1, fault=f"entry {least}: a log begins with entry 1")
    pieces = [(log, ledger, start) for start in range(1, count + 1, PIECE)] or [(log, ledger, 1)]
    if len(pieces) == 1:
        return _piece(*pieces[0])
    workers = min(len(pieces), len(os.sched_getaffinity(0)))
    whole: Scan | None = None
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        for found in pool.map(_piece, *zip(*pieces, strict=True)):
            if whole is None:
                whole = found
            else:
                whole.join(found)
    return whole or Scan(1)


def _piece(log: Path, ledger: Path | None, start: int) -> Scan:
    """One piece; what follows the first fault in it is not read."""
    found = Scan(start)
    # The log within: what goes wrong with it is told as the log's.
    with _ledger_of(ledger) as rows, opened(log, again=True) as database:
        try:
            if start == 1:
                (previous,) = database.execute("SELECT hash FROM origin").fetchone()
            else:
                (previous,) = database.execute("SELECT hash FROM entries WHERE number = ?", (start - 1,)).fetchone()
        except TypeError:
            raise LogError(f"the log {log} is damaged: it lacks entry {start - 1}, or its beginning") from None
        if not is_sha256(previous):
            raise LogError(f"the log {log} is damaged at entry {start}: what comes before it is no hash")
        query = "SELECT number, entry, hash FROM entries WHERE number >= ? ORDER BY number LIMIT ?"
        number = start - 1
        for number, (stored, text, digest) in enumerate(database.execute(query, (start, PIECE)), start):
            try:
                previous = _take(found, number, (stored, text, digest), previous, rows)
            except LogError:  # the ledger cannot be read
                raise
            except PrivacyError as exc:
                found.fault = f"entry {number}: {exc}"
                break
    return found


def _take(found: Scan, number: int, stored: tuple[object, object, object], previous: str, rows: "_Rows | None") -> str:
    place, text, digest = stored
    if place != number or type(text) is not str or type(digest) is not str:
        raise PrivacyError("it is missing, or another stands in its place")
    content = text.encode()
    try:
        follows = chained(previous, content)
    except ValueError:
        follows = ""
    if follows != digest:
        raise PrivacyError("its hash does not follow from the entry before and its text")
    whole = read_entry(content, number)
    found.chain.append(bytes.fromhex(digest[:32]))
    found.leaves.append(leaf_hash(content))
    if whole["kind"] in _CHARGES:
        found.rows += 1
        found.first_row = found.first_row or whole["row"]
        expected = found.first_row + found.rows - 1
        if whole["row"] != expected or (found.first == 1 and found.first_row != 1):
            raise PrivacyError(f"it is about row {whole['row']} of the ledger, which is not the next one")
        if rows is not None:
            rows.check(whole)
        _count(found, whole)
    elif whole["kind"] == "policy":
        found.epoch = number
        found.rare.append(whole)
    elif whole["kind"] == "accepted":
        found.accepted.append(_accepted(whole))
    else:
        found.rare.append(whole)
    return follows


def _accepted(whole: dict[str, Any]) -> Accepted:
    signature = None if whole["signature"] is None else bytes.fromhex(whole["signature"])
    fields = {name: whole.get(name) for name in Accepted._fields}
    own = {"release": bytes.fromhex(whole["release"]), "size": whole["bytes"], "signature": signature}
    return Accepted(**{**fields, **own})


def _count(found: Scan, whole: dict[str, Any]) -> None:
    noise = whole["mechanism"]
    key = (
        found.epoch,
        *(whole[name] for name in _SAME),
        noise and tuple(noise.values()),
        whole["delta"],
        whole.get("codec"),
    )
    size, at, epsilon = whole.get("bytes", 0), whole["round"], whole["epsilon"]
    found.releases[bytes.fromhex(whole["release"])] = whole["number"], size, at
    group = found.groups.get(key)
    if group is None:
        shared = {name: whole.get(name) for name in (*_SAME, "mechanism", "delta", "codec")}
        number = whole["number"]
        found.groups[key] = Group(shared, 1, number, (at, at), size, epsilon, epsilon, number, found.epoch)
        return
    group.count += 1
    group.most_bytes = max(group.most_bytes, size)
    group.rounds = min(group.rounds[0], at), max(group.rounds[1], at)
    if _fell(group.epsilon, epsilon) and not group.falls:
        group.falls = whole["number"]
    group.epsilon, group.last = epsilon, whole["number"]


def _fell(before: float | None, now: float | None) -> bool:
    """Whether an epsilon is less than the one before it, by more than the accountants' own errors."""
    return before is not None and now is not None and now < before - _FALL


class _Rows:
    """Rows of a ledger, one after the other."""

    def __init__(self, database: sqlite3.Connection, path: Path) -> None:
        self._database, self._path = database, path
        self._next: Iterator[tuple[int, str, str]] | None = None

    def check(self, whole: dict[str, Any]) -> None:
        """Hold an entry to the row of the ledger that it is about: the row's text must be what the entry says."""
        number = whole["row"]
        try:
            if self._next is None:
                query = "SELECT number, entry, hash FROM charges WHERE number >= ? ORDER BY number"
                self._next = self._database.execute(query, (number,))
            stored, text, digest = next(self._next, (0, "", ""))
        except UNREADABLE as exc:
            raise LogError(f"{self._path} cannot be read: {exc}") from exc
        if stored != number:
            raise PrivacyError(f"row {number} of the ledger, which it is about, is not the next one there")
        if digest != whole["row_hash"]:
            raise PrivacyError(f"row {number} of the ledger has another hash than it had")
        told = {name: whole[name] for name in _ROW}
        try:
            at = text.rindex(',"time":"') + 9
            same = canonical_json({"number": number, "time": text[at:-2], **told}) == text.encode()
        except (ValueError, AttributeError, TypeError):  # it is no text, or no row
            same = False
        if not same:
            raise PrivacyError(f"row {number} of the ledger says something else")


def scan_ledger(path: Path) -> tuple[int, str]:
    """Verify a ledger's chain, and that nothing is charged for twice; after `scan`, which looks at its pages.

    Returns:
        Number of its rows, and the first thing that is wrong; empty for nothing.

    Raises:
        LogError: The file cannot be read at all.
    """
    number, charged = 0, set()
    with opened(path, again=True) as database:
        _check_scheme(database, path, Ledger.scheme())
        origins = database.execute("SELECT hash FROM origin").fetchall()
        if len(origins) != 1 or not is_sha256(origins[0][0]):
            return 0, "row 1: what comes before it is missing"
        raw = bytes.fromhex(origins[0][0])
        rows = database.execute("SELECT number, entry, hash FROM charges ORDER BY number")
        for number, (place, text, digest) in enumerate(rows, 1):
            content = str(text).encode()
            raw = hashlib.sha256(raw + content).digest()
            if place != number or raw.hex() != digest:
                return number - 1, f"row {number}: its hash does not follow from the row before and its text"
            release = _RELEASE.search(content)
            if release is None or release[1] in charged:
                return number - 1, f"row {number}: it charges for nothing, or for what was charged before"
            charged.add(release[1])
    return number, ""


def _check_scheme(database: sqlite3.Connection, path: Path, scheme: dict[str, str]) -> None:
    """A view or a trigger could show anything, and a write-ahead log something else than the file that is handed on."""
    found = dict(database.execute("SELECT name, sql FROM sqlite_master").fetchall())
    if found != scheme or database.execute("PRAGMA journal_mode").fetchone() != ("delete",):
        raise other_scheme(path)


@contextlib.contextmanager
def _ledger_of(path: Path | None) -> Iterator[_Rows | None]:
    if path is None:
        yield None
        return
    with opened(path, again=True) as database:
        yield _Rows(database, path)
