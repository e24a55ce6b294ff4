"""What a site writes into its signed log, and what it remembers of it.

Each row of the ledger has one entry here, in the same order: `release` where bytes left, `charged` where noise met data
and nothing left for it, or the node was killed between charge and entry. `privacy.custody.transaction` keeps the two
together.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fedglm.privacy.custody.tree_heads import ExchangedHeads
from fedglm.privacy.errors import LogError, Refusal
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.charges import Charge, LedgerRow
from fedglm.privacy.ledger.spending import Spending
from fedglm.privacy.log.chained_file import Head, utc_now
from fedglm.privacy.log.entries import CHARGES
from fedglm.privacy.log.signed_log import Entry, SignedLog
from fedglm.privacy.log.tree_head import SignedTreeHead, sign_new_key
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.run_plan import SignedPlan

_ALL_OF: Final = 1000
"""So many refusals of a rule, and plans under which nothing left, have an entry each; after that one an hour has, for a
server could fill the disk. All refusals are counted in the log of refusals."""
_SPARSE: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Release:
    """Something that is about to leave.

    Attributes:
        charge: What the ledger is charged for it.
        size: Bytes.
        non_zeros: Coordinates of an update that are not zero; None for measures.
        codec: Name of an update's codec.
        rules: Names of the rules that it was held to.
    """

    charge: Charge
    size: int
    non_zeros: int | None = None
    codec: str | None = None
    rules: Sequence[str] = ()


class EntryWriter:
    """Writes entries about policy and ledger, all of a block or none: see `CustodyLog.writing`.

    Args:
        put: Takes the kind and the fields of an entry.
        delta: Of the policy in force, which entries tell epsilon at; None where it names none.
    """

    def __init__(self, put: Callable[[str, Mapping[str, Any]], None], delta: float | None) -> None:
        self._put, self._delta = put, delta

    def policy(self, policy: Policy) -> None:
        """A policy is in force from now on."""
        self._put("policy", {"policy": policy.sha256, "content": policy.model_dump(mode="json")})

    def charged(self, row: LedgerRow, spending: Spending) -> None:
        """A row was charged for which nothing left.

        Args:
            row: Of the ledger.
            spending: Of its data set, up to the row.
        """
        self._put("charged", self._of_row(row, spending))

    def released(self, row: LedgerRow, spending: Spending, release: Release) -> None:
        """A row was charged for something that leaves.

        Args:
            row: Of the ledger.
            spending: Of its data set, up to the last row of the same message.
            release: What leaves.
        """
        own = {"bytes": release.size, "non_zeros": release.non_zeros, "codec": release.codec}
        self._put("release", {**self._of_row(row, spending), **own, "rules": list(release.rules)})

    def resent(self, release: Release) -> None:
        """What was charged for before leaves again."""
        charge = release.charge
        fields = {"run": charge.run, "round": charge.round, "release": charge.release, "bytes": release.size}
        self._put("resent", fields)

    def _of_row(self, row: LedgerRow, spending: Spending) -> dict[str, Any]:
        charge, delta = row.charge, None if spending.without_noise else self._delta
        names = ("run", "round", "data_set", "commitment", "purpose", "plan", "policy", "release")
        fields = {name: getattr(charge, name) for name in names} | ({} if charge.id is None else {"id": charge.id})
        fields["mechanism"] = charge.mechanism and charge.mechanism.to_fields()
        epsilon = None if delta is None else spending.bound_epsilon(delta)
        return {**fields, "row": row.number, "row_hash": row.hash, "epsilon": epsilon, "delta": delta}


class CustodyLog:
    """The log of a site, in the file at `path`.

    Args:
        path: Of the file.
        key: The site's.
        previous: The key that it takes the place of, to vouch for it; None where nobody has that any more.

    Raises:
        LogError: There is no such file, it is damaged, or the site did not sign it.
    """

    def __init__(self, path: Path, key: SigningKey, previous: SigningKey | None = None) -> None:
        self._row_hashes: list[str] = []
        self._resent: set[str] = set()
        self._heads = ExchangedHeads()
        self._policy = ""
        self._delta: float | None = None
        self._plans: dict[str, str] = {}
        self._used: set[str] = set()
        self._link: dict[str, str] = {}
        self._refusals: dict[str, tuple[int, str]] = {}
        self._log = SignedLog(path, key, self._remember)
        if self._log.key != key.public:
            vouched = None if previous is None else sign_new_key(previous, self._log.origin, key.public)
            self._log.append("key", {"key": key.public.hex, "previous": self._log.key.hex, "vouched": vouched})

    @property
    def head(self) -> Head:
        """Where the log stands: what the server keeps as an anchor."""
        return self._log.head

    @property
    def origin(self) -> str:
        """What the log's chain begins with."""
        return self._log.origin

    @property
    def policy(self) -> str:
        """SHA-256 (hex) of the policy that is in force; empty before the first."""
        return self._policy

    @property
    def row_hashes(self) -> Sequence[str]:
        """Hashes (hex) of the ledger's rows that have an entry, in order."""
        return self._row_hashes

    @property
    def resent(self) -> Set[str]:
        """SHA-256 (hex) of all that left more than once."""
        return self._resent

    def contains(self, anchor: Head) -> bool:
        """Whether the log once stood at `anchor`; False says that it was rolled back, cloned or made anew."""
        return self._log.contains(anchor)

    @contextlib.contextmanager
    def writing(self) -> Iterator[EntryWriter]:
        """Write entries about policy and ledger; on the disk for good when the block is through, all or none.

        Other processes wait until then, and all that they wrote before has been remembered.

        Raises:
            LogError: They could not be written.
        """
        with self._log.writing() as put:
            yield EntryWriter(put, self._delta)

    def admitted(self, signed: SignedPlan, rules: Sequence[str]) -> None:
        """The plan of a run was admitted.

        Raises:
            Refusal: Rule `idle-plans`: there were very many under which nothing left.
            LogError: It could not be written.
        """
        if signed.plan.sha256 in self._plans:
            return
        idle = [time for plan, time in self._plans.items() if plan not in self._used]
        if _is_enough(len(idle), max(idle, default="")):
            raise Refusal("idle-plans", f"nothing left under {len(idle)} plans; another is admitted in an hour")
        fields = {"plan": signed.plan.sha256, "server": signed.server.hex, "rules": list(rules)}
        self._log.append("plan", {**fields, "signed": signed.to_text()})

    def linked(self, tls: str, certificate: str, authority: str) -> None:
        """The node reaches its server so: protocol, and SHA-256 of the certificate and of the authority behind it.

        Written where it is another than before.
        """
        link = {"tls": tls, "certificate": certificate, "authority": authority}
        if link != self._link:
            self._log.append("link", link)

    def refused(self, rule: str, run: str, server_round: int) -> None:
        """Something was refused by a rule."""
        count, last = self._refusals.get(rule, (0, ""))
        if not _is_enough(count, last):
            self._log.append("refused", {"run": run, "round": server_round, "rule": rule})

    def seal(
        self, signed: SignedPlan, theirs: SignedTreeHead, ours: tuple[SignedTreeHead, str] | None
    ) -> SignedTreeHead:
        """Keep how the server's log stands, and what it has countersigned of this one, each once.

        Args:
            signed: The plan that is pinned, of whose run that log is.
            theirs: The server's tree head.
            ours: A tree head of this log, and the server's countersignature (hex); None where it has seen none.

        Returns:
            The site's signature over all entries, these included.

        Raises:
            Refusal: Rule `seal`: something is not signed, is not of this log, or there were too many.
            LogError: It could not be written.
        """
        with self._log.writing() as put:
            idle = signed.plan.sha256 not in self._used
            for kind, fields in self._heads.verify(self._log.origin, signed, theirs, ours, idle=idle):
                put(kind, fields)
        return self._log.read_tree_head()

    def _remember(self, entry: Entry) -> None:
        kind = entry["kind"]
        self._heads.remember(entry)
        if kind in CHARGES:
            if entry["row"] != len(self._row_hashes) + 1:
                raise LogError(
                    f"it is about row {entry['row']} of the ledger, and row {len(self._row_hashes) + 1} is next"
                )
            self._row_hashes.append(entry["row_hash"])
            self._used.add(entry["plan"])
        elif kind == "resent":
            self._resent.add(entry["release"])
        elif kind == "policy":
            self._policy, self._delta = entry["policy"], entry["content"]["delta"]
        elif kind == "plan":
            self._plans[entry["plan"]] = entry["time"]
        elif kind == "link":
            self._link = {name: entry[name] for name in ("tls", "certificate", "authority")}
        elif kind == "refused":
            count, _ = self._refusals.get(entry["rule"], (0, ""))
            self._refusals[entry["rule"]] = count + 1, entry["time"]


def _is_enough(count: int, last: str) -> bool:
    """Whether after so many entries of a kind, of which the last was written then, another must wait."""
    return count >= _ALL_OF and datetime.fromisoformat(utc_now()) - datetime.fromisoformat(last) < _SPARSE


def open_log(path: Path, key: SigningKey, name: str) -> None:
    """Begin a site's log in a new file; raises LogError where there is one."""
    SignedLog.create(path, key, role="site", name=name)
