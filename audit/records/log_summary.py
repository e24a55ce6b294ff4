"""What a log says, or a piece of one: entries of which it has many are counted by what they have in common."""

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from fedglm.audit.records.release_entries import ReleaseEntry
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.merkle import leaf_hash

_FALL: Final = 0.1
"""By so much an epsilon may fall from one release to the next: the accountant takes a coarser grid as steps add up."""

_OUT_OF_TURN: Final = "it is about row {} of the ledger, which is not the next one"
_TWICE: Final = "its row of the ledger charges for what was charged before"

GroupKey = tuple[Any, ...]


@dataclass
class Group:
    """Releases that differ in nothing but round, size and content.

    Attributes:
        fields: What they have in common: see `release_entries.Common`.
        count: How many.
        first: Number of the first one's entry.
        rounds: The least and the greatest round.
        max_bytes: Of the largest.
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
    max_bytes: int
    told: float | None
    epsilon: float | None
    last: int
    epoch: int
    falls: int = 0

    @classmethod
    def of(cls, entry: ReleaseEntry, epoch: int) -> "Group":
        """The group of one release."""
        at, told, number = entry.round, entry.epsilon, entry.number
        return cls(entry.common.fields, 1, number, (at, at), entry.size, told, told, number, epoch)

    def add(self, entry: ReleaseEntry) -> None:
        """Take in the next release."""
        least, most = self.rounds
        at = entry.round
        if not least <= at <= most:
            self.rounds = min(least, at), max(most, at)
        if entry.size > self.max_bytes:
            self.max_bytes = entry.size
        if _fell(self.epsilon, entry.epsilon) and not self.falls:
            self.falls = entry.number
        self.count += 1
        self.epsilon, self.last = entry.epsilon, entry.number

    def join(self, later: "Group") -> None:
        """Take in what a later piece has."""
        self.count += later.count
        self.rounds = min(self.rounds[0], later.rounds[0]), max(self.rounds[1], later.rounds[1])
        self.max_bytes = max(self.max_bytes, later.max_bytes)
        fell = _fell(self.epsilon, later.told)
        self.last = later.last
        self.falls = self.falls or (later.first if fell else later.falls)
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

    @classmethod
    def of(cls, whole: dict[str, Any]) -> "Accepted":
        """Of all the fields of an entry."""
        signature = None if whole["signature"] is None else bytes.fromhex(whole["signature"])
        own = {"release": bytes.fromhex(whole["release"]), "size": whole["bytes"], "signature": signature}
        return cls(**{**{name: whole.get(name) for name in cls._fields}, **own})


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
        releases: Of each release its SHA-256 (32 bytes): number of its first entry, size, round.
        repeats: Of later releases of the same bytes, by their SHA-256 and round: number of the first one's entry, size.
        attempts: What each row charges for once (`ReleaseEntry.attempt`): number of its entry.
        rows: How many rows of the ledger they are about.
        first_charge: Number of the first entry about one, and of its row; None for none.
        epoch: Number of the last entry about a policy; 0 for none.
        fault: The first thing that is wrong, with the entry that it is wrong with.
        ledger_fault: Number of the first entry whose row of the ledger is wrong, and what is wrong with that; None
            where all rows are right.
    """

    first: int
    chain: list[bytes] = field(default_factory=list)
    leaves: list[bytes] = field(default_factory=list)
    rare: list[dict[str, Any]] = field(default_factory=list)
    accepted: list[Accepted] = field(default_factory=list)
    groups: dict[GroupKey, Group] = field(default_factory=dict)
    releases: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    repeats: dict[tuple[bytes, int], tuple[int, int]] = field(default_factory=dict)
    attempts: dict[bytes, int] = field(default_factory=dict)
    rows: int = 0
    first_charge: tuple[int, int] | None = None
    epoch: int = 0
    fault: str = ""
    ledger_fault: tuple[int, str] | None = None

    def take(self, number: int, content: bytes, digest: str, entry: ReleaseEntry | dict[str, Any]) -> None:
        """Take in the next entry.

        Args:
            number: Its own.
            content: Its text.
            digest: Its hash, hex.
            entry: What it says.

        Raises:
            PrivacyError: It charges for something out of turn.
        """
        self.chain.append(bytes.fromhex(digest[:32]))
        self.leaves.append(leaf_hash(content))
        if isinstance(entry, ReleaseEntry):
            self._charge(entry)
        elif entry["kind"] == "accepted":
            self.accepted.append(Accepted.of(entry))
        else:
            self.epoch = number if entry["kind"] == "policy" else self.epoch
            self.rare.append(entry)

    def _charge(self, entry: ReleaseEntry) -> None:
        if self.first_charge is None:
            self.first_charge = entry.number, 1 if self.first == 1 else entry.row
        if entry.row != self.first_charge[1] + self.rows:
            raise PrivacyError(_OUT_OF_TURN.format(entry.row))
        self.rows += 1
        release, attempt = bytes.fromhex(entry.release), entry.attempt
        if attempt in self.attempts:
            self.blame_ledger(entry.number, _TWICE)
        self.attempts.setdefault(attempt, entry.number)
        if release in self.releases:
            self.repeats.setdefault((release, entry.round), (entry.number, entry.size))
        else:
            self.releases[release] = entry.number, entry.size, entry.round
        key = (self.epoch, *entry.common.key)
        if key in self.groups:
            self.groups[key].add(entry)
        else:
            self.groups[key] = Group.of(entry, self.epoch)

    def release_in(self, release: bytes, at: int) -> tuple[int, int, int] | None:
        """Number of the entry, size and round of the release of that SHA-256: in that round, if it left in several."""
        known = self.releases.get(release)
        if known is not None and known[2] != at and (release, at) in self.repeats:
            return *self.repeats[release, at], at
        return known

    def blame_ledger(self, number: int, fault: str) -> None:
        """Keep what is wrong with the row of an entry, if it is the first."""
        self.ledger_fault = min(self.ledger_fault or (number, fault), (number, fault))

    def join(self, later: "Scan") -> None:
        """Take in the next piece; of one with a fault, none comes after."""
        if later.first_charge is not None and later.first_charge[1] != self.rows + 1:
            number, row = later.first_charge
            self.fault = f"entry {number}: {_OUT_OF_TURN.format(row)}"
        if later.ledger_fault is not None:
            self.blame_ledger(*later.ledger_fault)
        for attempt in self.attempts.keys() & later.attempts:
            self.blame_ledger(later.attempts[attempt], _TWICE)
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
            # What came before the first policy of a piece was under the last one of the pieces before it.
            key = known if known[0] else (self.epoch, *known[1:])
            group.epoch = key[0]
            if key in self.groups:
                self.groups[key].join(group)
            else:
                self.groups[key] = group
        self.first_charge = self.first_charge or later.first_charge
        self.rows += later.rows
        self.epoch = later.epoch or self.epoch
        self.fault = self.fault or later.fault


def _fell(before: float | None, now: float | None) -> bool:
    """Whether an epsilon is less than the one before it, by more than the accountants' own errors."""
    return before is not None and now is not None and now < before - _FALL
