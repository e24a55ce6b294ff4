"""What a site writes into its signed log, and how that log is held to the ledger.

Each row of the ledger has one entry in the log, in the same order: `release` where bytes left, `charged` where noise
met data and nothing left for it, or the node was killed between charge and entry. So neither can be cut or put back
without the other, and who keeps an anchor of the log has one of both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

from fedglm.privacy.accounting.accountant import upper_bound
from fedglm.privacy.errors import LogError, PrivacyError, Refusal
from fedglm.privacy.keys.signing import PublicKey, SigningKey
from fedglm.privacy.ledger.charges import Budget, Charge, LedgerRow, related
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.chained_file import Head, now
from fedglm.privacy.log.entries import CHARGES
from fedglm.privacy.log.signed_log import Entry, SignedLog
from fedglm.privacy.log.tree_head import MAX_SEALS, SignedTreeHead, vouch
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.run_plan import SignedPlan

_ALL_OF: Final = 1000
"""So many refusals of a rule, and plans under which nothing left, have an entry each; after that one an hour has, for a
server could fill the disk. All refusals are counted in the log of refusals."""
_SPARSE: Final = timedelta(hours=1)
MAX_IDLE_SEALS: Final = 10
"""Checkpoints of a run under whose plan nothing has left: it needs a few, and a server has many such plans."""
_Put = Callable[[str, Mapping[str, Any]], None]


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
        self._rows: list[str] = []
        self._resent: set[str] = set()
        self._witnessed: dict[str, tuple[str, set[int]]] = {}
        self._countersigned: set[tuple[int, str]] = set()
        self._keys: list[PublicKey] = []
        self._policy = ""
        self._delta: float | None = None
        self._plans: dict[str, str] = {}
        self._used: set[str] = set()
        self._link: dict[str, str] = {}
        self._refusals: dict[str, tuple[int, str]] = {}
        self._log = SignedLog(path, key, self._remember)
        if self._log.key != key.public:
            vouched = None if previous is None else vouch(previous, self._log.origin, key.public)
            self._log.append("key", {"key": key.public.hex, "previous": self._log.key.hex, "vouched": vouched})

    @property
    def head(self) -> Head:
        """Where the log stands: what the server keeps as an anchor."""
        return self._log.head

    def holds(self, anchor: Head) -> bool:
        """Whether the log once stood at `anchor`; False says that it was rolled back, cloned or made anew."""
        return self._log.holds(anchor)

    def check(self, ledger: Ledger) -> None:
        """Hold log and ledger to each other.

        Raises:
            LogError: One of them was rolled back, or changed.
        """
        self._check(ledger.rows(), 0)

    def _check(self, rows: Sequence[LedgerRow], start: int) -> None:
        logged = self._rows
        if len(logged) > len(rows):
            raise LogError(f"the ledger has {len(rows)} rows, and the log shows {len(logged)}: it was rolled back")
        for row, digest in zip(rows[start:], logged[start:], strict=False):
            if row.hash != digest:
                raise LogError(f"row {row.number} of the ledger is another than the log shows: one of them was changed")

    def in_force(self, policy: Policy, ledger: Ledger) -> None:
        """A policy is in force from now on; what was charged for before it stands before it."""
        if policy.sha256 == self._policy:
            return
        with self._log.writing() as put:
            self._mend(ledger.rows(), put)
            put("policy", {"policy": policy.sha256, "content": policy.model_dump(mode="json")})

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
        found = {"tls": tls, "certificate": certificate, "authority": authority}
        if found != self._link:
            self._log.append("link", found)

    def refused(self, refusal: Refusal, run: str, server_round: int) -> None:
        """Something was refused."""
        count, last = self._refusals.get(refusal.rule, (0, ""))
        if not _is_enough(count, last):
            self._log.append("refused", {"run": run, "round": server_round, "rule": refusal.rule})

    def release(self, ledger: Ledger, budget: Budget | None, leaving: Sequence[Release]) -> None:
        """Charge for what leaves in a message, and write it down; only then may it leave.

        What was charged for this very attempt leaves again for nothing.

        Args:
            ledger: The site's.
            budget: What the data set may spend in all; None for no limit.
            leaving: All that leaves.

        Raises:
            Refusal: Rule `epsilon-budget`, or `policy-changed`: it was made under another policy than is in force.
            LedgerError, LogError: It could not be written.
        """
        self._catch_up(ledger)
        with self._log.writing() as put:  # others wait: charge and entry belong together
            fresh = self._fresh([each.charge for each in leaving], ledger.rows(), put)
            for each in leaving:
                if (
                    each.charge not in fresh and each.charge.release not in self._resent
                ):  # once, however often it is asked
                    of_round = {"run": each.charge.run, "round": each.charge.round}
                    put("resent", {**of_round, "release": each.charge.release, "bytes": each.size})
            if not fresh:
                return
            head = ledger.charge(fresh[0], budget, *fresh[1:])
            rows = ledger.rows()[: head.rows]
            new = [each for each in leaving if each.charge in fresh]
            for each, row in zip(new, rows[-len(new) :], strict=True):
                own = {"bytes": each.size, "non_zeros": each.non_zeros, "codec": each.codec, "rules": list(each.rules)}
                put("release", {**_fields(row, *_so_far(rows, row, self._delta)), **own})

    def charge(self, ledger: Ledger, budget: Budget | None, charges: Sequence[Charge]) -> None:
        """Charge for an attempt of which nothing leaves; for one that was charged before, do nothing.

        Args:
            ledger: The site's.
            budget: What the data set may spend in all; None for no limit.
            charges: All that the attempt's noise was for.

        Raises:
            Refusal, LedgerError, LogError: As `release`; nothing of the attempt could have left then.
        """
        self._catch_up(ledger)
        with self._log.writing() as put:
            fresh = self._fresh(charges, ledger.rows(), put)
            if fresh:
                ledger.charge(fresh[0], budget, *fresh[1:])
                self._mend(ledger.rows(), put)

    def _catch_up(self, ledger: Ledger) -> None:
        """By itself: whatever happens to the next charge, the log knows those before it."""
        if len(rows := ledger.rows()) > len(self._rows):
            with self._log.writing() as put:
                self._mend(rows, put)

    def _fresh(self, charges: Sequence[Charge], rows: Sequence[LedgerRow], put: _Put) -> list[Charge]:
        """Those of the charges that no row has paid for yet."""
        self._mend(rows, put)
        if any(charge.mechanism is not None and charge.id is None for charge in charges):
            raise PrivacyError("a charge for noise names the attempt that it pays for")
        if any(charge.policy != self._policy for charge in charges):
            raise Refusal("policy-changed", "another policy was signed while the answer was made: ask again")
        charged = {row.charge.key for row in rows}
        return [charge for charge in charges if charge.key not in charged]

    def seal(
        self, signed: SignedPlan, theirs: SignedTreeHead, ours: tuple[SignedTreeHead, str] | None
    ) -> SignedTreeHead:
        """Keep how the server's log stands, and what it has countersigned of this one, each once.

        Args:
            signed: The plan that is pinned, of whose run that log is.
            theirs: The server's checkpoint.
            ours: A checkpoint of this log, and the server's countersignature (hex); None where it has seen none.

        Returns:
            The site's signature over all entries, these included.

        Raises:
            Refusal: Rule `seal`: something is not signed, is not of this log, or there were too many.
            LogError: It could not be written.
        """
        run, server = signed.plan.run, signed.server
        if not theirs.is_by(server):
            raise Refusal("seal", "the server's checkpoint is not signed by the key that signed the plan")
        with self._log.writing() as put:
            log, seen = self._witnessed.get(run, (theirs.log, set()))
            if log != theirs.log:
                raise Refusal("seal", "the server's log of this run is another than before")
            if ours is not None:
                own, countersignature = ours
                known = own.log == self._log.origin and any(own.is_by(key) for key in self._keys)
                if not known or not own.is_countersigned(server, countersignature):
                    raise Refusal("seal", "what the server countersigned is no checkpoint of this log")
                # Kept with a new checkpoint alone, for this entry itself makes another checkpoint to countersign.
                if theirs.size not in seen and (own.size, server.hex) not in self._countersigned:
                    put("countersigned", {**own.to_fields(), "by": server.hex, "countersignature": countersignature})
            if theirs.size not in seen:
                limit = MAX_SEALS if signed.plan.sha256 in self._used else MAX_IDLE_SEALS
                if len(seen) >= limit:
                    raise Refusal("seal", f"more than {limit} checkpoints of one run")
                fields = {"run": run, "log": theirs.log, "name": "server", "key": server.hex}
                put("witnessed", {**fields, **theirs.to_fields()})
        return self._log.checkpoint()

    @property
    def origin(self) -> str:
        """What the log's chain begins with."""
        return self._log.origin

    def _mend(self, rows: Sequence[LedgerRow], put: _Put) -> None:
        """Write down what was charged and has no entry: nothing left for it, or the node was killed between."""
        self._check(rows, max(0, len(self._rows) - 1))  # the hash of a row is over all before it
        for row in rows[len(self._rows) :]:
            put("charged", _fields(row, *_so_far(rows[: row.number], row, self._delta)))

    def _remember(self, found: Entry) -> None:
        kind = found["kind"]
        if kind in CHARGES:
            if found["row"] != len(self._rows) + 1:
                raise LogError(f"it is about row {found['row']} of the ledger, and row {len(self._rows) + 1} is next")
            self._rows.append(found["row_hash"])
            self._used.add(found["plan"])
        elif kind in ("opened", "key"):
            self._keys.append(PublicKey.from_hex(found["key"]))
        elif kind == "witnessed":
            self._witnessed.setdefault(found["run"], (found["log"], set()))[1].add(found["size"])
        elif kind == "countersigned":
            self._countersigned.add((found["size"], found["by"]))
        elif kind == "resent":
            self._resent.add(found["release"])
        elif kind == "policy":
            self._policy, self._delta = found["policy"], found["content"]["delta"]
        elif kind == "plan":
            self._plans[found["plan"]] = found["time"]
        elif kind == "link":
            self._link = {name: found[name] for name in ("tls", "certificate", "authority")}
        elif kind == "refused":
            count, _ = self._refusals.get(found["rule"], (0, ""))
            self._refusals[found["rule"]] = count + 1, found["time"]


def _is_enough(count: int, last: str) -> bool:
    """Whether after so many entries of a kind, of which the last was written then, another must wait."""
    return count >= _ALL_OF and datetime.fromisoformat(now()) - datetime.fromisoformat(last) < _SPARSE


def open_log(path: Path, key: SigningKey, name: str) -> None:
    """Begin a site's log in a new file; raises LogError where there is one."""
    SignedLog.create(path, key, role="site", name=name)


def _fields(row: LedgerRow, epsilon: float | None, delta: float | None) -> dict[str, Any]:
    charge = row.charge
    names = ("run", "round", "data_set", "commitment", "purpose", "plan", "policy", "release")
    told = {name: getattr(charge, name) for name in names} | ({} if charge.id is None else {"id": charge.id})
    noise = charge.mechanism and charge.mechanism.to_fields()
    return {**told, "mechanism": noise, "row": row.number, "row_hash": row.hash, "epsilon": epsilon, "delta": delta}


def _so_far(rows: Sequence[LedgerRow], row: LedgerRow, delta: float | None) -> tuple[float | None, float | None]:
    """What the row's data set has spent with it: an upper bound, and the delta that it is told at."""
    noise = [each.charge.mechanism for each in related(rows, row.charge.data_set, row.charge.commitment)]
    if delta is None or None in noise:
        return None, None
    return upper_bound([mechanism.event() for mechanism in noise if mechanism is not None], delta), delta
