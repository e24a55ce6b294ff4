"""Verification of one log: its chain, its owner's signatures, and what the other side has countersigned."""

import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from fedglm.audit.records.checks import Check
from fedglm.audit.records.log_scan import scan
from fedglm.audit.records.log_summary import Scan
from fedglm.audit.records.untrusted_sqlite import hash_before, opened
from fedglm.privacy.errors import LogError, PrivacyError
from fedglm.privacy.keys.signing import PublicKey
from fedglm.privacy.log.merkle import Tree, leaf_hash
from fedglm.privacy.log.tree_head import COLUMNS, SignedTreeHead, is_vouched


@dataclass(frozen=True)
class KnownKeys:
    """Keys (hex) that are owners' by other evidence than their own logs.

    Attributes:
        given: By whoever verifies.
        of: Of the sites by their names, as the server knew them.
    """

    given: frozenset[str] = frozenset()
    of: Mapping[str, Set[str]] = field(default_factory=dict)

    def has(self, owner: str, key: str) -> bool:
        """Whether that key is that owner's: one that is known as another's takes over no log."""
        others = {other for name, keys in self.of.items() if name != owner for other in keys}
        return key in self.of.get(owner, ()) or (key in self.given and key not in others)


@dataclass(frozen=True)
class LogRecord:
    """A log that was read.

    Attributes:
        subject: Its owner in checks.
        path: Of the file.
        origin: What its chain begins with.
        scan: What it says.
        keys: The owner's, in the order in which they were in force.
        checkpoint: The owner's newest; None where it is missing.
    """

    subject: str
    path: Path
    origin: str
    scan: Scan
    keys: list[PublicKey]
    checkpoint: SignedTreeHead | None

    @property
    def size(self) -> int:
        """Number of entries."""
        return len(self.scan.chain)

    def of_kind(self, kind: str) -> list[dict[str, Any]]:
        """Entries of a kind of which a log has few."""
        return [found for found in self.scan.rare if found["kind"] == kind]

    def texts(self) -> Iterator[bytes]:
        """Texts of all entries, the oldest first, each held to what was verified.

        Raises:
            LogError: The file was changed since.
        """
        left = iter(self.scan.leaves)
        with opened(self.path, again=True) as database:
            for (text,) in database.execute("SELECT entry FROM entries ORDER BY number"):
                content = str(text).encode()
                if leaf_hash(content) != next(left, None):
                    raise LogError(f"{self.path} was changed while it was read")
                yield content
        if next(left, None) is not None:
            raise LogError(f"{self.path} was cut while it was read")

    def entries(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Entries of some kinds, the oldest first; raises as `texts`."""
        marks = [f'"kind":"{kind}"'.encode() for kind in kinds]
        for content in self.texts():
            if any(mark in content for mark in marks):  # most are of other kinds, and need not be parsed
                found: dict[str, Any] = json.loads(content)
                if found["kind"] in kinds:
                    yield found

    def root(self, size: int) -> str:
        """Root (hex) over so many first entries, at most all."""
        return self._tree.root(size).hex()

    @cached_property
    def _tree(self) -> Tree:
        return Tree(self.scan.leaves)

    def holds(self, anchor: str) -> bool:
        """Whether the log stood at `rows:hash` once."""
        rows, _, digest = anchor.partition(":")
        number = int(rows)
        if number == 0:
            return self.origin.startswith(digest)
        return number <= self.size and self.scan.chain[number - 1].hex() == digest


_NONE: Final = KnownKeys()


def read_log(
    path: Path, role: str, name: str, ledger: Path | None = None, known: KnownKeys = _NONE
) -> tuple[LogRecord | None, list[Check]]:
    """Read a log and hold it to itself.

    Args:
        path: Of its file.
        role: `site` or `server`.
        name: Whose it is, in checks, where it does not say so itself.
        ledger: The ledger's file, of a site.
        known: One of these needs no old key that vouches for it.

    Returns:
        The log, None where it cannot be read, and the checks.
    """
    subject = name

    def check(name: str, held: bool | None, said: str) -> Check:
        return Check(subject=subject, name=name, held=held, said=said)

    try:
        found = scan(path, ledger)
        origin, own = _checkpoint(path)
    except PrivacyError as exc:
        return None, [check("log", False, str(exc))]
    subject = found.rare[0]["name"] if found.rare else name
    if found.fault or not found.rare:
        return None, [check("log", False, f"the log is damaged: {found.fault or 'entry 1 is missing, and all others'}")]
    opened = found.rare[0]
    keys = [opened["key"], *(entry["key"] for entry in found.rare if entry["kind"] == "key")]
    record = LogRecord(subject, path, origin, found, [PublicKey.from_hex(key) for key in keys], own)
    checks = [check("log", True, f"{record.size} entries, each follows from the one before it")]
    if opened["role"] != role:
        checks.append(check("owner", False, f"entry 1: the log is of a {opened['role']}, not of a {role}"))
    checks += [_key_changes(record, known), _own_signature(record), *_countersignatures(record)]
    return record, checks


def _checkpoint(path: Path) -> tuple[str, SignedTreeHead | None]:
    """Of a log that was scanned: what the chain begins with, and the owner's newest checkpoint; None for not one."""
    with opened(path, again=True) as database:
        origin = hash_before(database, "entries", 1)
        rows = database.execute("SELECT * FROM checkpoint").fetchall()
    if not origin:
        raise LogError(f"the log {path} is damaged: it has not one beginning")
    if len(rows) != 1:
        return origin, None
    try:
        return origin, SignedTreeHead.from_fields(origin, dict(zip(COLUMNS, rows[0], strict=True)))
    except PrivacyError:
        return origin, None


def _key_changes(record: LogRecord, known: KnownKeys) -> Check:
    def check(held: bool, said: str) -> Check:
        return Check(subject=record.subject, name="key", held=held, said=said)

    for before, now, entry in zip(record.keys, record.keys[1:], record.of_kind("key"), strict=False):
        if entry["previous"] != before.hex:
            return check(False, f"entry {entry['number']}: it replaces a key that was not the owner's")
        if entry["vouched"] is None:
            if not known.has(record.subject, now.hex):
                said = "no old key vouched for this one; if it is the owner's, give it with --key"
                return check(False, f"entry {entry['number']}: {said}")
        elif not is_vouched(before, record.origin, now, entry["vouched"]):
            return check(False, f"entry {entry['number']}: the old key did not vouch for the new one")
    said = record.keys[-1].fingerprint()
    return check(True, f"{said}{f', changed {len(record.keys) - 1} times' if len(record.keys) > 1 else ''}")


def _own_signature(record: LogRecord) -> Check:
    def check(held: bool, said: str) -> Check:
        return Check(subject=record.subject, name="signature", held=held, said=said)

    own = record.checkpoint
    if own is None:
        return check(False, "its owner's signature over the entries is missing")
    if own.size != record.size:
        kind = "were cut off" if own.size > record.size else "were put on"
        odd = min(own.size, record.size) + 1
        return check(False, f"entry {odd}: from here on entries {kind}; the owner signed {own.size}, not {record.size}")
    if own.root != record.root(own.size):
        return check(False, f"entries 1 to {own.size} are not those that the owner signed")
    if not own.is_by(record.keys[-1]):
        return check(False, f"entry {own.size}: the log is not signed by its owner's key up to here")
    return check(True, f"all {own.size} entries are signed by the owner")


def _countersignatures(record: LogRecord) -> list[Check]:
    """What the other side has seen of this log."""

    def check(held: bool | None, said: str) -> list[Check]:
        return [Check(subject=record.subject, name="countersignature", held=held, said=said)]

    entries = record.of_kind("countersigned")
    if not entries:
        return check(None, "nobody has countersigned any of it yet")
    for entry in entries:
        own, number = SignedTreeHead.from_fields(record.origin, entry), entry["number"]
        if own.size > record.size or record.root(own.size) != own.root:
            return check(False, f"entry {number}: entries 1 to {own.size} are not those that were countersigned")
        if not any(own.is_by(key) for key in record.keys):
            return check(False, f"entry {number}: what was countersigned is not signed by the owner")
        if not own.is_countersigned(PublicKey.from_hex(entry["by"]), entry["countersignature"]):
            return check(False, f"entry {number}: the countersignature is none")
    most = max(entry["size"] for entry in entries)
    return check(True, f"{len(entries)} times, up to entry {most} of {record.size}")
