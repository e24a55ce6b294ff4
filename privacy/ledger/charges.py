"""The content of a privacy ledger: charges, and their rows."""

import re
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Final

from fedglm.core.canonical_json import canonical_json, read_canonical_json
from fedglm.privacy.accounting.accountant import MAX_DELTA, MIN_DELTA
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.chained_file import Head, is_sha256
from fedglm.privacy.log.entries import PURPOSES

_MAX_ROUND: Final = 2**31 - 1
_EMPTY_SHA256: Final = "0" * 64
_ATTEMPT_ID: Final = re.compile(r"[0-9a-f]{32}")


def make_attempt_id() -> str:
    """Make a random id for one attempt at a reply: 32 hexadecimal digits from the operating system."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Budget:
    """The privacy budget of one data set, over all runs.

    Attributes:
        epsilon: Maximum epsilon, above 0.
        delta: Delta of the guarantee, from 1e-10 to 0.1; at most 1 / (10 x units) for a meaningful guarantee.

    Raises:
        PrivacyError: A number is out of its bounds.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not 0 < self.epsilon < float("inf"):
            raise PrivacyError(f"a budget's epsilon is a finite number above 0, not {self.epsilon!r}")
        if not MIN_DELTA <= self.delta <= MAX_DELTA:
            raise PrivacyError(f"delta is a number from {MIN_DELTA:g} to {MAX_DELTA:g}, not {self.delta!r}")


@dataclass(frozen=True, kw_only=True)
class Charge:
    """The charge for one release, which is made before it leaves.

    Attributes:
        data_set: The site's name of the data set, 1 to 200 characters.
        commitment: Commitment to the content of the data set, see `privacy.ledger.commitment.compute_commitment`.
        run: Identity of the run, 1 to 200 characters.
        round: Number of the round; 0 before the first.
        purpose: Purpose of the release, one of `PURPOSES`.
        mechanism: Mechanism of the noise; None for a release without noise, after which no epsilon holds for the data
            set any more.
        plan: SHA-256 (hex) of the run plan.
        policy: SHA-256 (hex) of the policy that permits the release.
        release: SHA-256 (hex) of the bytes that leave; of the attempt's id where nothing could leave.
        id: Id of the attempt whose noise this charge pays for (see `make_attempt_id`). The node keeps it with the
            reply, and recognizes a retry by it: equal bytes do not prove a retry, for a server that chooses weights and
            learning rate can make them likely. None in rows of ledgers from before there were ids.

    Raises:
        PrivacyError: A field is malformed; the message names it.
    """

    data_set: str
    commitment: str
    run: str
    round: int
    purpose: str
    mechanism: Mechanism | None
    plan: str
    policy: str
    release: str
    id: str | None = None

    def __post_init__(self) -> None:
        for name in ("data_set", "run"):
            text = getattr(self, name)
            if type(text) is not str or not 0 < len(text) <= 200 or not text.isprintable():
                raise PrivacyError(f"charge: {name} is a text of 1 to 200 printable characters")
        for name in ("commitment", "plan", "policy", "release"):
            if not is_sha256(getattr(self, name)):
                raise PrivacyError(f"charge: {name} is a SHA-256, 64 digits 0-9 a-f")
        if type(self.round) is not int or not 0 <= self.round <= _MAX_ROUND:
            raise PrivacyError(f"charge: round is a whole number from 0 to {_MAX_ROUND}")
        if self.purpose not in PURPOSES:
            raise PrivacyError(f"charge: purpose is one of {', '.join(PURPOSES)}, not {self.purpose!r}"[:200])
        if self.mechanism is not None and not isinstance(self.mechanism, Mechanism):
            raise PrivacyError("charge: mechanism is a Mechanism, or none")
        if self.id is not None and (type(self.id) is not str or not _ATTEMPT_ID.fullmatch(self.id)):
            raise PrivacyError("charge: id is 32 digits 0-9 a-f, or none")

    @property
    def key(self) -> tuple[str, str]:
        """Key under which a charge is made only once: attempt and purpose; in old ledgers, bytes and purpose."""
        return self.id or self.release, self.purpose

    def to_fields(self) -> dict[str, Any]:
        """Return the fields as in a row; without an id there is no such field, as in old ledgers."""
        values = asdict(self)
        if self.id is None:
            del values["id"]
        return values


@dataclass(frozen=True)
class LedgerRow:
    """A charge in a ledger.

    Attributes:
        number: Number of the row, from 1.
        time: Time of the row: UTC, ISO 8601 to the second.
        charge: The charge.
        previous: Hash (hex) of the row before.
        hash: SHA-256 (hex) of `previous` (32 bytes) and the row's entry.
    """

    number: int
    time: str
    charge: Charge
    previous: str
    hash: str

    @staticmethod
    def entry(number: int, time: str, charge: Charge) -> bytes:
        """Make the entry of a row: canonical JSON of number, time and charge."""
        return canonical_json({"number": number, "time": time, **charge.to_fields()})

    @classmethod
    def read(cls, head: Head, content: bytes, digest: str) -> "LedgerRow":
        """Parse the row after `head` from its entry.

        Args:
            head: Head of the chain before the row.
            content: Entry of the row.
            digest: Hash (hex) of the row.

        Raises:
            PrivacyError: The entry is malformed, or of another row.
        """
        try:
            tree: Any = read_canonical_json(content)
        except ValueError as exc:
            raise PrivacyError(f"its text is {exc}") from exc
        known = {"number", "time", *(field.name for field in fields(Charge))}
        if not isinstance(tree, dict) or tree.keys() not in (known, known - {"id"}):
            raise PrivacyError("its text has missing or unknown fields")
        number, time = tree.pop("number"), tree.pop("time")
        if number != head.rows + 1 or type(time) is not str:
            raise PrivacyError("its text has another number, or no time")
        if "id" in tree and tree["id"] is None:  # only one encoding: a missing id is left out
            raise PrivacyError("its text has an id that is none")
        if isinstance(tree["mechanism"], dict):
            tree["mechanism"] = Mechanism.from_fields(tree["mechanism"])
        return cls(number, time, Charge(**tree), head.sha256, digest)


@dataclass(frozen=True)
class RowGroup:
    """Rows that differ only in round, time, release and id.

    Attributes:
        first: The first row.
        last: The last row.
        count: Number of rows; rows of other groups may be between them.
    """

    first: LedgerRow
    last: LedgerRow
    count: int


def group_rows(rows: Iterable[LedgerRow]) -> Iterator[RowGroup]:
    """Group rows by data set, run, purpose, mechanism, plan and policy, in the order of the first rows."""
    kinds: dict[Charge, list[LedgerRow]] = {}
    for row in rows:
        kinds.setdefault(replace(row.charge, round=0, release=_EMPTY_SHA256, id=None), []).append(row)
    for members in kinds.values():
        yield RowGroup(members[0], members[-1], len(members))


def select_related_rows(rows: Iterable[LedgerRow], data_set: str, commitment: str | None) -> list[LedgerRow]:
    """Select the rows that count against a data set.

    These are the rows with its name or its content, and those that share a name or content with them, transitively. So
    neither another record under the same name nor a second name for the same content opens a new budget.
    """
    rows = list(rows)
    pairs = find_data_set_pairs({(row.charge.data_set, row.charge.commitment) for row in rows}, data_set, commitment)
    return [row for row in rows if (row.charge.data_set, row.charge.commitment) in pairs]


def find_data_set_pairs(
    pairs: Iterable[tuple[str, str]], data_set: str, commitment: str | None
) -> set[tuple[str, str]]:
    """Find the pairs of name and commitment that count as one data set, of the given name and commitment (if any)."""
    remaining, names, contents = set(pairs), {data_set}, {commitment}
    connected: set[tuple[str, str]] = set()
    while new := {(name, content) for name, content in remaining if name in names or content in contents}:
        remaining -= new
        connected |= new
        names |= {name for name, _ in new}
        contents |= {content for _, content in new}
    return connected
