"""The signed log of a site: the entries that it writes, and the state that it derives from them.

Each row of the ledger has one entry here, in the same order: `release` where bytes left, `charged` where noise was
added to data but nothing left, or the node was killed between charge and entry. `privacy.custody.transaction` keeps the
two consistent.
"""

import contextlib
import hashlib
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

_MAX_DENSE_ENTRIES: Final = 1000
"""Number of refusals of a rule, and of plans under which nothing left, that each have an entry. Beyond it one per hour
has an entry, for a server could fill the disk. All refusals are counted in the log of refusals."""
_SPARSE_INTERVAL: Final = timedelta(hours=1)


@dataclass(frozen=True)
class Release:
    """A release that is about to leave.

    Attributes:
        charge: Charge to the ledger.
        size: Size in bytes.
        non_zeros: Number of an update's nonzero coordinates; None for metrics.
        codec: Name of an update's codec; None for metrics.
        rules: Names of the rules that it was checked against.
    """

    charge: Charge
    size: int
    non_zeros: int | None = None
    codec: str | None = None
    rules: Sequence[str] = ()


class EntryWriter:
    """Writes entries about policy and ledger, all of a block or none: see `CustodyLog.writing`.

    Args:
        put: Adds an entry, by kind and fields.
        delta: Delta of the policy in force, for epsilon in entries; None where it has none.
    """

    def __init__(self, put: Callable[[str, Mapping[str, Any]], None], delta: float | None) -> None:
        self._put, self._delta = put, delta

    def write_policy(self, policy: Policy) -> None:
        """Write that a policy is in force from now on."""
        self._put("policy", {"policy": policy.sha256, "content": policy.model_dump(mode="json")})

    def write_charge(self, row: LedgerRow, spending: Spending) -> None:
        """Write that a row was charged for which nothing left.

        Args:
            row: Row of the ledger.
            spending: Spending of its data set, up to the row.
        """
        self._put("charged", self._make_row_fields(row, spending))

    def write_release(self, row: LedgerRow, spending: Spending, release: Release) -> None:
        """Write that a row was charged for a release.

        Args:
            row: Row of the ledger.
            spending: Spending of its data set, up to the last row of the same message.
            release: The release.
        """
        release_fields = {"bytes": release.size, "non_zeros": release.non_zeros, "codec": release.codec}
        self._put("release", {**self._make_row_fields(row, spending), **release_fields, "rules": list(release.rules)})

    def write_resend(self, release: Release) -> None:
        """Write that a release leaves again, without a charge."""
        charge = release.charge
        fields = {"run": charge.run, "round": charge.round, "release": charge.release, "bytes": release.size}
        self._put("resent", fields)

    def _make_row_fields(self, row: LedgerRow, spending: Spending) -> dict[str, Any]:
        charge, delta = row.charge, None if spending.without_noise else self._delta
        names = ("run", "round", "data_set", "commitment", "purpose", "plan", "policy", "release")
        fields = {name: getattr(charge, name) for name in names} | ({} if charge.id is None else {"id": charge.id})
        fields["mechanism"] = charge.mechanism and charge.mechanism.to_fields()
        epsilon = None if delta is None else spending.bound_epsilon(delta)
        return {**fields, "row": row.number, "row_hash": row.hash, "epsilon": epsilon, "delta": delta}


class CustodyLog:
    """The signed log of a site, in the file at `path`.

    Args:
        path: Path of the file.
        key: Key of the site.
        previous: The key that `key` replaces, to sign it; None where that is lost.

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
        self._used_plans: set[str] = set()
        self._link: dict[str, str] = {}
        self._validations: set[tuple[str, str]] = set()
        self._models: dict[str, str] = {}
        self._refusals: dict[str, tuple[int, str]] = {}
        self._log = SignedLog(path, key, self._update_state)
        if self._log.key != key.public:
            vouched = None if previous is None else sign_new_key(previous, self._log.origin, key.public)
            self._log.append("key", {"key": key.public.hex, "previous": self._log.key.hex, "vouched": vouched})

    @property
    def head(self) -> Head:
        """Current head of the log, which the server keeps as an anchor."""
        return self._log.head

    @property
    def origin(self) -> str:
        """Random number at the beginning of the log's hash chain (hex)."""
        return self._log.origin

    @property
    def policy(self) -> str:
        """SHA-256 (hex) of the policy in force; empty before the first."""
        return self._policy

    @property
    def row_hashes(self) -> Sequence[str]:
        """Hashes (hex) of the ledger's rows that have an entry, in order."""
        return self._row_hashes

    @property
    def resent(self) -> Set[str]:
        """SHA-256 (hex) of the releases that left more than once."""
        return self._resent

    def find_model(self, run: str) -> str | None:
        """Return the SHA-256 (hex) of the manifest of the model that the site holds from a run; None for none."""
        return self._models.get(run)

    def contains(self, anchor: Head) -> bool:
        """Return whether `anchor` is in the log; if not, it was rolled back, cloned or replaced."""
        return self._log.contains(anchor)

    @contextlib.contextmanager
    def writing(self) -> Iterator[EntryWriter]:
        """Write entries about policy and ledger, all or none; they are durable on the disk when the block ends.

        Other processes wait until then, and the state includes all entries that they wrote before.

        Raises:
            LogError: The entries could not be written.
        """
        with self._log.writing() as put:
            yield EntryWriter(put, self._delta)

    def record_plan(self, signed: SignedPlan, rules: Sequence[str]) -> None:
        """Record that the plan of a run was admitted, once.

        Raises:
            Refusal: Rule `idle-plans`: there were too many plans under which nothing left.
            LogError: The entry could not be written.
        """
        if signed.plan.sha256 in self._plans:
            return
        idle = [time for plan, time in self._plans.items() if plan not in self._used_plans]
        if _must_wait(len(idle), max(idle, default="")):
            raise Refusal("idle-plans", f"nothing left under {len(idle)} plans; another is admitted in an hour")
        fields = {"plan": signed.plan.sha256, "server": signed.server.hex, "rules": list(rules)}
        self._log.append("plan", {**fields, "signed": signed.to_text()})

    def record_validation(self, run: str, manifest: str, content: str, rules: Sequence[str]) -> None:
        """Record that the site tells the server how a light release works on its machine; the same thing once.

        Args:
            run: Identity of the run.
            manifest: SHA-256 (hex) of the release's manifest.
            content: What it tells.
            rules: Names of the rules that it was checked against.

        Raises:
            LogError: The entry could not be written.
        """
        release = hashlib.sha256(content.encode()).hexdigest()
        if (run, release) in self._validations:
            return
        fields = {"run": run, "manifest": manifest, "release": release, "bytes": len(content.encode())}
        self._log.append("validation", {**fields, "rules": list(rules)})

    def record_model(self, run: str, rounds: int, model: str, manifest: str) -> None:
        """Record that the site holds the model that a run ended with; the same one once.

        Args:
            run: Identity of the run.
            rounds: Number of rounds.
            model: SHA-256 (hex) of the model.
            manifest: SHA-256 (hex) of the manifest that the server signed.

        Raises:
            LogError: The entry could not be written.
        """
        if self._models.get(run) != manifest:
            self._log.append("model", {"run": run, "round": rounds, "model": model, "manifest": manifest})

    def record_link(self, tls: str, certificate: str, authority: str) -> None:
        """Record the node's connection to its server, if it differs from the one before.

        Args:
            tls: Version of the protocol.
            certificate: SHA-256 (hex) of the server's certificate.
            authority: SHA-256 (hex) of the certificate of its authority.
        """
        link = {"tls": tls, "certificate": certificate, "authority": authority}
        if link != self._link:
            self._log.append("link", link)

    def record_refusal(self, rule: str, run: str, server_round: int) -> None:
        """Record a refusal, by the name of its rule."""
        count, last = self._refusals.get(rule, (0, ""))
        if not _must_wait(count, last):
            self._log.append("refused", {"run": run, "round": server_round, "rule": rule})

    def exchange_tree_heads(
        self, signed: SignedPlan, theirs: SignedTreeHead, ours: tuple[SignedTreeHead, str] | None
    ) -> SignedTreeHead:
        """Record a server's tree head, and its countersignature of one of this log, each once.

        Args:
            signed: The pinned plan of the run.
            theirs: Tree head of the server's log of the run.
            ours: A tree head of this log, and the server's countersignature (hex); None where it has seen none.

        Returns:
            The site's signed tree head over all entries, including these.

        Raises:
            Refusal: Rule `seal`: a signature is wrong, a tree head is of another log, or there were too many.
            LogError: The entries could not be written.
        """
        with self._log.writing() as put:
            idle = signed.plan.sha256 not in self._used_plans
            for kind, fields in self._heads.verify(self._log.origin, signed, theirs, ours, idle=idle):
                put(kind, fields)
        return self._log.read_tree_head()

    def _update_state(self, entry: Entry) -> None:
        kind = entry["kind"]
        self._heads.update(entry)
        if kind in CHARGES:
            if entry["row"] != len(self._row_hashes) + 1:
                raise LogError(
                    f"it is about row {entry['row']} of the ledger, and row {len(self._row_hashes) + 1} is next"
                )
            self._row_hashes.append(entry["row_hash"])
            self._used_plans.add(entry["plan"])
        elif kind == "resent":
            self._resent.add(entry["release"])
        elif kind == "policy":
            self._policy, self._delta = entry["policy"], entry["content"]["delta"]
        elif kind == "plan":
            self._plans[entry["plan"]] = entry["time"]
        elif kind == "link":
            self._link = {name: entry[name] for name in ("tls", "certificate", "authority")}
        elif kind == "validation":
            self._validations.add((entry["run"], entry["release"]))
        elif kind == "model":
            self._models[entry["run"]] = entry["manifest"]
        elif kind == "refused":
            count, _ = self._refusals.get(entry["rule"], (0, ""))
            self._refusals[entry["rule"]] = count + 1, entry["time"]


def _must_wait(count: int, last: str) -> bool:
    """Return whether another entry must wait, after `count` entries of its kind, the last of them at time `last`."""
    return (
        count >= _MAX_DENSE_ENTRIES
        and datetime.fromisoformat(utc_now()) - datetime.fromisoformat(last) < _SPARSE_INTERVAL
    )


def create_log(path: Path, key: SigningKey, name: str) -> None:
    """Create a site's log in a new file.

    Raises:
        LogError: The file exists already, or cannot be written.
    """
    SignedLog.create(path, key, role="site", name=name)
