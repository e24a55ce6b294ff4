"""What stands in a privacy ledger: charges, and the rows that they become."""

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
_NONE: Final = "0" * 64
_ID: Final = re.compile(r"[0-9a-f]{32}")


def new_id() -> str:
    """A fresh name for one attempt at an answer: 32 hexadecimal digits from the operating system."""
    return secrets.token_hex(16)


@dataclass(frozen=True)
class Budget:
    """What one data set may spend in its life.

    Attributes:
        epsilon: Above 0.
        delta: From 1e-10 to 0.1; at most a tenth of one over the number of units, to mean something.

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
    """One release, as it is charged before it leaves.

    Attributes:
        data_set: The site's name for the data, 1 to 200 characters.
        commitment: What `privacy.ledger.commitment.commitment` says of its content.
        run: Run that it is for, 1 to 200 characters.
        round: Round that it is for; 0 before the first.
        purpose: One of `PURPOSES`.
        mechanism: How it was noised; None says that it was not, and then no epsilon holds for the data set any more.
        plan: SHA-256 (hex) of the run plan.
        policy: SHA-256 (hex) of the policy that let it out.
        release: SHA-256 (hex) of the bytes that leave; of the attempt's id where nothing could leave.
        id: Names the one attempt whose noise this pays for (see `new_id`). The node keeps it with the answer, and a
            retry is known by it: equal bytes say nothing, for a server that picks weights and learning rate can make
            them likely. None in rows of ledgers that were begun before there were ids.

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
        if self.id is not None and (type(self.id) is not str or not _ID.fullmatch(self.id)):
            raise PrivacyError("charge: id is 32 digits 0-9 a-f, or none")

    @property
    def key(self) -> tuple[str, str]:
        """What is charged once: an attempt for a purpose; in old ledgers, bytes for a purpose."""
        return self.id or self.release, self.purpose

    def to_fields(self) -> dict[str, Any]:
        """The fields as rows hold them; an id that there is not is left out, as in old ledgers."""
        own = asdict(self)
        if self.id is None:
            del own["id"]
        return own


@dataclass(frozen=True)
class LedgerRow:
    """A charge as it stands in a ledger.

    Attributes:
        number: 1 for the first.
        time: When it was written: UTC, ISO 8601 to the second.
        charge: The charge.
        previous: Hash of the row before.
        hash: SHA-256 (hex) of `previous` (32 bytes) and the row's entry.
    """

    number: int
    time: str
    charge: Charge
    previous: str
    hash: str

    @staticmethod
    def entry(number: int, time: str, charge: Charge) -> bytes:
        """What stands in a ledger: canonical JSON of number, time and charge."""
        return canonical_json({"number": number, "time": time, **charge.to_fields()})

    @classmethod
    def read(cls, head: Head, content: bytes, digest: str) -> "LedgerRow":
        """The row that follows `head`, of its entry and its hash.

        Raises:
            PrivacyError: The entry is none.
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
        if "id" in tree and tree["id"] is None:  # one spelling: an id that there is not is left out
            raise PrivacyError("its text has an id that is none")
        if isinstance(tree["mechanism"], dict):
            tree["mechanism"] = Mechanism.from_fields(tree["mechanism"])
        return cls(number, time, Charge(**tree), head.sha256, digest)


@dataclass(frozen=True)
class Stretch:
    """Rows that differ in nothing but round, time, release and id.

    Attributes:
        first: The first row.
        last: The last row.
        count: How many they are; rows of other stretches may lie between them.
    """

    first: LedgerRow
    last: LedgerRow
    count: int


def stretches(rows: Iterable[LedgerRow]) -> Iterator[Stretch]:
    """A ledger in few lines: one for each data set, run, purpose, mechanism, plan and policy, by their first rows."""
    kinds: dict[Charge, list[LedgerRow]] = {}
    for row in rows:
        kinds.setdefault(replace(row.charge, round=0, release=_NONE, id=None), []).append(row)
    for members in kinds.values():
        yield Stretch(members[0], members[-1], len(members))


def related(rows: Iterable[LedgerRow], data_set: str, commitment: str | None) -> list[LedgerRow]:
    """The rows that count against a data set: of its name, of its content, and of what shares either with those.

    So neither a record more under the same name nor a second name for the same content opens a new budget.
    """
    rows = list(rows)
    found = one_data_set({(row.charge.data_set, row.charge.commitment) for row in rows}, data_set, commitment)
    return [row for row in rows if (row.charge.data_set, row.charge.commitment) in found]


def one_data_set(pairs: Iterable[tuple[str, str]], data_set: str, commitment: str | None) -> set[tuple[str, str]]:
    """Those of the pairs of name and content that count as the data set of that name and, where given, content."""
    left, names, contents = set(pairs), {data_set}, {commitment}
    found: set[tuple[str, str]] = set()
    while joining := {(name, content) for name, content in left if name in names or content in contents}:
        left -= joining
        found |= joining
        names |= {name for name, _ in joining}
        contents |= {content for _, content in joining}
    return found
