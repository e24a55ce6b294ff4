"""The content of a log, or of a piece of one; numerous entries are grouped by what they have in common."""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fedglm.audit.records.release_entries import ReleaseEntry
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.merkle import hash_leaf

_EPSILON_TOLERANCE: Final = 0.1
"""Largest decrease of epsilon between releases; accountants use a coarser grid for more steps."""

_WRONG_ROW: Final = "it is about row {} of the ledger, which is not the next one"
_CHARGED_TWICE: Final = "its row of the ledger charges for what was charged before"

GroupKey = tuple[Any, ...]


@dataclass
class ReleaseGroup:
    """Releases that differ only in round, size and content.

    Attributes:
        fields: Fields that they share: see `release_entries.SharedFields`.
        count: Number of releases.
        first: Number of the first release's entry.
        round_range: First and last round.
        max_bytes: Size of the largest release.
        first_epsilon: Epsilon that the first release reports; None if it reports none.
        epsilon: Epsilon that the last release reports; None if it reports none.
        last: Number of the last release's entry.
        policy_entry: Number of the entry about the policy that was in force; 0 for none.
        decreased_at: Number of an entry whose epsilon is below the one before it in this group; 0 for none.
    """

    fields: dict[str, Any]
    count: int
    first: int
    round_range: tuple[int, int]
    max_bytes: int
    first_epsilon: float | None
    epsilon: float | None
    last: int
    policy_entry: int
    decreased_at: int = 0

    @classmethod
    def from_entry(cls, entry: ReleaseEntry, policy_entry: int) -> "ReleaseGroup":
        """Make the group of one release."""
        at, epsilon, number = entry.round, entry.epsilon, entry.number
        return cls(entry.common.fields, 1, number, (at, at), entry.size, epsilon, epsilon, number, policy_entry)

    def add(self, entry: ReleaseEntry) -> None:
        """Add the next release."""
        first, last = self.round_range
        at = entry.round
        if not first <= at <= last:
            self.round_range = min(first, at), max(last, at)
        if entry.size > self.max_bytes:
            self.max_bytes = entry.size
        if _decreased(self.epsilon, entry.epsilon) and not self.decreased_at:
            self.decreased_at = entry.number
        self.count += 1
        self.epsilon, self.last = entry.epsilon, entry.number

    def merge(self, later: "ReleaseGroup") -> None:
        """Add the releases of the same group in a later piece."""
        self.count += later.count
        self.round_range = (
            min(self.round_range[0], later.round_range[0]),
            max(self.round_range[1], later.round_range[1]),
        )
        self.max_bytes = max(self.max_bytes, later.max_bytes)
        decreased = _decreased(self.epsilon, later.first_epsilon)
        self.last = later.last
        self.decreased_at = self.decreased_at or (later.first if decreased else later.decreased_at)
        self.epsilon = later.epsilon


class AcceptedUpdate(NamedTuple):
    """An update that a server accepted: number of the entry about it, and its fields."""

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

    @classmethod
    def from_entry(cls, fields: dict[str, Any]) -> "AcceptedUpdate":
        """Make it from all fields of an entry."""
        signature = None if fields["signature"] is None else bytes.fromhex(fields["signature"])
        converted = {"release": bytes.fromhex(fields["release"]), "size": fields["bytes"], "signature": signature}
        return cls(**{**{name: fields.get(name) for name in cls._fields}, **converted})


@dataclass
class LogScan:
    """The content of a log, or of a piece of one.

    Attributes:
        first: Number of the first entry.
        chain: First 16 bytes of each entry's hash, which anchors show.
        leaves: Leaf of the Merkle tree for each entry, 32 bytes.
        rare: Entries of kinds of which a log has few.
        accepted: Updates that a server accepted.
        groups: Releases, grouped by what they have in common.
        releases: By the SHA-256 (32 bytes) of each release: number of its first entry, size in bytes, round.
        repeats: Later releases of the same bytes, by SHA-256 and round: number of the first one's entry, size in bytes.
        attempts: Number of the entry, by what its row charges for once (`ReleaseEntry.attempt`).
        rows: Number of the ledger's rows that the entries are about.
        first_charge: Number of the first entry about a row, and of that row; None for none.
        policy_entry: Number of the last entry about a policy; 0 for none.
        fault: Description of the first fault, with the number of its entry; empty for none.
        ledger_fault: Number of the first entry whose row of the ledger is wrong, and a description of the fault; None
            if all rows are correct.
    """

    first: int
    chain: list[bytes] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)
    rare: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[AcceptedUpdate] = field(default_factory=list)
    groups: dict[GroupKey, ReleaseGroup] = field(default_factory=dict)
    releases: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    repeats: dict[tuple[bytes, int], tuple[int, int]] = field(default_factory=dict)
    attempts: dict[bytes, int] = field(default_factory=dict)
    rows: int = 0
    first_charge: tuple[int, int] | None = None
    policy_entry: int = 0
    fault: str = ""
    ledger_fault: tuple[int, str] | None = None

    def add_entry(self, number: int, content: bytes, digest: str, entry: ReleaseEntry | dict[str, Any]) -> None:
        """Add the next entry.

        Args:
            number: Number of the entry.
            content: Text of the entry, UTF-8.
            digest: Hash of the entry, hex.
            entry: Fields of the entry.

        Raises:
            PrivacyError: The entry is about another row of the ledger than the next.
        """
        self.chain.append(bytes.fromhex(digest[:32]))
        self.leaves.append(hash_leaf(content))
        if isinstance(entry, ReleaseEntry):
            self._charge(entry)
        elif entry["kind"] == "accepted":
            self.accepted.append(AcceptedUpdate.from_entry(entry))
        else:
            self.policy_entry = number if entry["kind"] == "policy" else self.policy_entry
            self.rare.append(entry)

    def _charge(self, entry: ReleaseEntry) -> None:
        if self.first_charge is None:
            self.first_charge = entry.number, 1 if self.first == 1 else entry.row
        if entry.row != self.first_charge[1] + self.rows:
            raise PrivacyError(_WRONG_ROW.format(entry.row))
        self.rows += 1
        release, attempt = bytes.fromhex(entry.release), entry.attempt
        if attempt in self.attempts:
            self.record_ledger_fault(entry.number, _CHARGED_TWICE)
        self.attempts.setdefault(attempt, entry.number)
        if release in self.releases:
            self.repeats.setdefault((release, entry.round), (entry.number, entry.size))
        else:
            self.releases[release] = entry.number, entry.size, entry.round
        key = (self.policy_entry, *entry.common.key)
        if key in self.groups:
            self.groups[key].add(entry)
        else:
            self.groups[key] = ReleaseGroup.from_entry(entry, self.policy_entry)

    def find_release(self, release: bytes, at: int) -> tuple[int, int, int] | None:
        """Find the release of a SHA-256: the one of that round, if the same bytes left in several.

        Args:
            release: SHA-256, 32 bytes.
            at: Round.

        Returns:
            Number of the entry, size in bytes and round; None if there is none.
        """
        known = self.releases.get(release)
        if known is not None and known[2] != at and (release, at) in self.repeats:
            return *self.repeats[release, at], at
        return known

    def record_ledger_fault(self, number: int, fault: str) -> None:
        """Keep the fault of an entry's row, if it is the first."""
        self.ledger_fault = min(self.ledger_fault or (number, fault), (number, fault))

    def merge(self, later: "LogScan") -> None:
        """Add the next piece; a piece with a fault is the last one."""
        if later.first_charge is not None and later.first_charge[1] != self.rows + 1:
            number, row = later.first_charge
            self.fault = f"entry {number}: {_WRONG_ROW.format(row)}"
        if later.ledger_fault is not None:
            self.record_ledger_fault(*later.ledger_fault)
        for attempt in self.attempts.keys() & later.attempts:
            self.record_ledger_fault(later.attempts[attempt], _CHARGED_TWICE)
        self.chain += later.chain
        self.leaves += later.leaves
        self.rare += later.rare
        self.accepted += later.accepted
        for release in self.releases.keys() & later.releases:
            number, size, at = later.releases[release]
            self.repeats.setdefault((release, at), (number, size))
        self.releases = later.releases | self.releases
        self.repeats = later.repeats | self.repeats
        self.attempts = later.attempts | self.attempts
        for known, group in later.groups.items():
            # Releases before the first policy of a piece were under the last policy of the pieces before it.
            key = known if known[0] else (self.policy_entry, *known[1:])
            group.policy_entry = key[0]
            if key in self.groups:
                self.groups[key].merge(group)
            else:
                self.groups[key] = group
        self.first_charge = self.first_charge or later.first_charge
        self.rows += later.rows
        self.policy_entry = later.policy_entry or self.policy_entry
        self.fault = self.fault or later.fault


def _decreased(before: float | None, now: float | None) -> bool:
    """Return whether an epsilon is less than the one before it by more than the accountants' own errors."""
    return before is not None and now is not None and now < before - _EPSILON_TOLERANCE
