"""Verifies one log by itself: its chain, its owner's signatures, and what the other side has countersigned."""

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_scan import scan_log
from fedglm.audit.records.log_summary import LogScan
from fedglm.audit.records.untrusted_sqlite import open_untrusted, read_previous_hash
from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.merkle import Tree, hash_leaf
from fedglm.privacy.log.tree_head import FIELDS, SignedTreeHead, is_new_key_signed


@dataclass(frozen=True)
class KnownKeys:
    """Keys (hex) that are known to be their owners' from elsewhere than the owners' own logs.

    Attributes:
        given: Keys that whoever verifies has given.
        by_owner: Keys of sites as servers knew them, by the site's name.
    """

    given: frozenset[str] = frozenset()
    by_owner: Mapping[str, Set[str]] = field(default_factory=dict)

    def belongs_to(self, owner: str, key: str) -> bool:
        """Return whether a key is known as that owner's.

        A key that is known as another owner's does not count: it must not take over this log.
        """
        others = {other for name, keys in self.by_owner.items() if name != owner for other in keys}
        return key in self.by_owner.get(owner, ()) or (key in self.given and key not in others)


@dataclass(frozen=True)
class LogRecord:
    """A log that was read.

    Attributes:
        subject: Name of the owner in checks.
        path: Path of the log's file.
        origin: SHA-256 (hex) that the hash chain begins with.
        scan: Content of the log.
        keys: The owner's public keys, in the order in which they were in force.
        tree_head: The owner's newest signed tree head; None if it is missing.
    """

    subject: str
    path: Path
    origin: str
    scan: LogScan
    keys: list[PublicKey]
    tree_head: SignedTreeHead | None

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.scan.chain)

    def rare_entries(self, kind: str) -> list[dict[str, Any]]:
        """Return the entries of a kind of which a log has few."""
        return [entry for entry in self.scan.rare if entry["kind"] == kind]

    def read_texts(self) -> Iterator[bytes]:
        """Read the texts of all entries, the oldest first, and check each against what was verified.

        Raises:
            LogError: The file was changed since it was verified.
        """
        left = iter(self.scan.leaves)
        with open_untrusted(self.path, again=True) as database:
            for (text,) in database.execute("SELECT entry FROM entries ORDER BY number"):
                content = str(text).encode()
                if hash_leaf(content) != next(left, None):
                    raise LogError(f"{self.path} was changed while it was read")
                yield content
        if next(left, None) is not None:
            raise LogError(f"{self.path} was cut while it was read")

    def read_entries(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Read all entries of some kinds, the oldest first.

        Raises:
            LogError: The file was changed since it was verified.
        """
        marks = [f'"kind":"{kind}"'.encode() for kind in kinds]
        for content in self.read_texts():
            if any(mark in content for mark in marks):  # most are of other kinds, and need not be parsed
                entry: dict[str, Any] = json.loads(content)
                if entry["kind"] in kinds:
                    yield entry

    def compute_root(self, size: int) -> str:
        """Return the Merkle root (hex) over the first `size` entries, at most all."""
        return self._tree.root(size).hex()

    @cached_property
    def _tree(self) -> Tree:
        return Tree(self.scan.leaves)

    def contains_anchor(self, anchor: str) -> bool:
        """Return whether the log once stood at an anchor, `rows:hash`."""
        rows, _, digest = anchor.partition(":")
        number = int(rows)
        if number == 0:
            return self.origin.startswith(digest)
        return number <= self.size and self.scan.chain[number - 1].hex() == digest


_NO_KEYS: Final = KnownKeys()


def read_log(
    path: Path, role: str, name: str, ledger: Path | None = None, known: KnownKeys = _NO_KEYS
) -> tuple[LogRecord | None, list[Check]]:
    """Read a log and verify it by itself.

    Args:
        path: Path of the log's file.
        role: Role that the owner must have, `site` or `server`.
        name: Name of the owner in checks, for a log that does not say it.
        ledger: Path of the ledger's file, for a site.
        known: Known keys; such a key needs no older key to vouch for it.

    Returns:
        The log, or None if it cannot be read, and the checks.
    """
    subject = name

    def make_check(name: str, passed: bool | None, detail: str) -> Check:
        return Check(subject=subject, name=name, passed=passed, detail=detail)

    try:
        log_scan = scan_log(path, ledger)
        origin, tree_head = _read_tree_head(path)
    except PrivacyError as exc:
        return None, [make_check("log", False, str(exc))]
    subject = log_scan.rare[0]["name"] if log_scan.rare else name
    if log_scan.fault or not log_scan.rare:
        return None, [
            make_check("log", False, f"the log is damaged: {log_scan.fault or 'entry 1 is missing, and all others'}")
        ]
    opening = log_scan.rare[0]
    keys = [opening["key"], *(entry["key"] for entry in log_scan.rare if entry["kind"] == "key")]
    record = LogRecord(subject, path, origin, log_scan, [PublicKey.from_hex(key) for key in keys], tree_head)
    checks = [make_check("log", True, f"{record.size} entries, each follows from the one before it")]
    if opening["role"] != role:
        checks.append(make_check("owner", False, f"entry 1: the log is of a {opening['role']}, not of a {role}"))
    checks += [_check_key_changes(record, known), _check_signature(record), *_check_countersignatures(record)]
    return record, checks


def _read_tree_head(path: Path) -> tuple[str, SignedTreeHead | None]:
    """Read the beginning and the owner's newest signed tree head of a log that was scanned.

    Returns:
        SHA-256 (hex) that the chain begins with, and the tree head; None if there is not exactly one, or it is
        malformed.

    Raises:
        LogError: The log has no beginning, or several.
    """
    with open_untrusted(path, again=True) as database:
        origin = read_previous_hash(database, "entries", 1)
        rows = database.execute("SELECT * FROM checkpoint").fetchall()
    if not origin:
        raise LogError(f"the log {path} is damaged: it has not one beginning")
    if len(rows) != 1:
        return origin, None
    try:
        return origin, SignedTreeHead.from_fields(origin, dict(zip(FIELDS, rows[0], strict=True)))
    except PrivacyError:
        return origin, None


def _check_key_changes(record: LogRecord, known: KnownKeys) -> Check:
    """Check that each new key of the owner was vouched for by the one before, or is known."""

    def make_check(passed: bool, detail: str) -> Check:
        return Check(subject=record.subject, name="key", passed=passed, detail=detail)

    for before, now, entry in zip(record.keys, record.keys[1:], record.rare_entries("key"), strict=False):
        if entry["previous"] != before.hex:
            return make_check(False, f"entry {entry['number']}: it replaces a key that was not the owner's")
        if entry["vouched"] is None:
            if not known.belongs_to(record.subject, now.hex):
                detail = "no old key vouched for this one; if it is the owner's, give it with --key"
                return make_check(False, f"entry {entry['number']}: {detail}")
        elif not is_new_key_signed(before, record.origin, now, entry["vouched"]):
            return make_check(False, f"entry {entry['number']}: the old key did not vouch for the new one")
    detail = record.keys[-1].fingerprint()
    return make_check(True, f"{detail}{f', changed {len(record.keys) - 1} times' if len(record.keys) > 1 else ''}")


def _check_signature(record: LogRecord) -> Check:
    """Check the owner's signature over all entries."""

    def make_check(passed: bool, detail: str) -> Check:
        return Check(subject=record.subject, name="signature", passed=passed, detail=detail)

    tree_head = record.tree_head
    if tree_head is None:
        return make_check(False, "its owner's signature over the entries is missing")
    if tree_head.size != record.size:
        kind = "were cut off" if tree_head.size > record.size else "were put on"
        first_wrong = min(tree_head.size, record.size) + 1
        return make_check(
            False,
            f"entry {first_wrong}: from here on entries {kind}; the owner signed {tree_head.size}, not {record.size}",
        )
    if tree_head.root != record.compute_root(tree_head.size):
        return make_check(False, f"entries 1 to {tree_head.size} are not those that the owner signed")
    if not tree_head.is_by(record.keys[-1]):
        return make_check(False, f"entry {tree_head.size}: the log is not signed by its owner's key up to here")
    return make_check(True, f"all {tree_head.size} entries are signed by the owner")


def _check_countersignatures(record: LogRecord) -> list[Check]:
    """Check each tree head that the other side has countersigned."""

    def make_check(passed: bool | None, detail: str) -> list[Check]:
        return [Check(subject=record.subject, name="countersignature", passed=passed, detail=detail)]

    entries = record.rare_entries("countersigned")
    if not entries:
        return make_check(None, "nobody has countersigned any of it yet")
    for entry in entries:
        tree_head, number = SignedTreeHead.from_fields(record.origin, entry), entry["number"]
        if tree_head.size > record.size or record.compute_root(tree_head.size) != tree_head.root:
            return make_check(
                False, f"entry {number}: entries 1 to {tree_head.size} are not those that were countersigned"
            )
        if not any(tree_head.is_by(key) for key in record.keys):
            return make_check(False, f"entry {number}: what was countersigned is not signed by the owner")
        if not tree_head.is_countersigned(PublicKey.from_hex(entry["by"]), entry["countersignature"]):
            return make_check(False, f"entry {number}: the countersignature is none")
    newest = max(entry["size"] for entry in entries)
    return make_check(True, f"{len(entries)} times, up to entry {newest} of {record.size}")
