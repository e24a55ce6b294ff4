"""What an audit report is made of: the verified records of a run, and what its files say."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedglm.audit.empirical.results import ATTACK, CANARIES, AttackAudit, CanaryAudit
from fedglm.audit.records.checks import Check, missing
from fedglm.audit.records.log_records import LogRecord
from fedglm.audit.verify.site_records import Promise
from fedglm.audit.verify.verification import Verification, opened_verification
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.entries import CHARGES
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.run_plan import RunPlan, SignedPlan
from fedglm.run_folder.names import AUDIT, ROUNDS, SUMMARY
from fedglm.run_folder.record import ReportError, RunRecord, read_run

_LATER: Final = ("sealed", "model")
"""Checks that are open while a run is under way."""


@dataclass(frozen=True)
class SiteFacts:
    """What is known of a site.

    Attributes:
        log: Its log, verified or not.
        policy: The last that was in force; None for none.
        releases: Entries about what left, or was charged for, in order.
        refusals: How often each rule refused something.
        checks: Of its records.
        promises: What each of its data sets has spent; None where no figure counts.
    """

    log: LogRecord
    policy: Policy | None
    releases: list[dict[str, Any]]
    refusals: Counter[str]
    checks: list[Check]
    promises: list[Promise] | None

    @property
    def name(self) -> str:
        """The site's."""
        return self.log.subject

    @property
    def promise(self) -> Promise | None:
        """The weakest: one that does not hold, or that with the greatest epsilon; None where there is none."""
        bare = [promise for promise in self.promises or [] if promise.epsilon is None]
        return next(iter(bare), max(self.promises or [], key=lambda promise: promise.epsilon or 0.0, default=None))

    @property
    def epsilon(self) -> float | None:
        """The greatest of its data sets, at the delta of `promise`; None where none holds, or no figure counts."""
        if self.promises is None:
            return None
        return 0.0 if self.promise is None else self.promise.epsilon

    @property
    def left(self) -> list[dict[str, Any]]:
        """Of its releases those that left: not what a node charged for that was killed there, and never sent again."""
        again = {entry["release"] for entry in self.log.of_kind("resent")}
        return [entry for entry in self.releases if entry["kind"] == "release" or entry["release"] in again]

    @property
    def bytes(self) -> int:
        """Of all that left, what was sent again included."""
        return sum(entry.get("bytes", 0) for entry in [*self.releases, *self.log.of_kind("resent")])

    @property
    def units(self) -> set[str]:
        """What is protected by the noise of its releases, those of earlier runs included."""
        return {entry["mechanism"]["unit"] for entry in self.releases if entry["mechanism"] is not None}

    @property
    def is_linked(self) -> bool:
        """Whether its log shows by which connection the first release left."""
        links = self.log.of_kind("link")
        return bool(links) and all(links[0]["number"] < entry["number"] for entry in self.releases[:1])

    def holds(self, name: str) -> bool:
        """Whether all checks of that name hold, of which there is at least one."""
        found = [check.held for check in self.checks if check.name == name]
        return bool(found) and all(found)

    def said(self, name: str) -> str:
        """What the checks of that name found."""
        return "; ".join(check.said for check in self.checks if check.name == name)


@dataclass(frozen=True)
class AuditFacts:
    """What is known of a run.

    Attributes:
        folder: Of the run.
        verification: Of all records.
        plan: That the server announced, or that all sites here admitted last; None where neither is shown.
        sites: By name.
        server: Entries of the server's log of which there are few.
        result: What the run's own files say; None where it has none yet.
        canaries: What the canaries showed; None where nobody asked.
        attack: What the attacks showed; None where nobody asked.
    """

    folder: Path
    verification: Verification
    plan: RunPlan | None
    sites: list[SiteFacts]
    server: list[dict[str, Any]]
    result: RunRecord | None
    canaries: CanaryAudit | None
    attack: AttackAudit | None

    @property
    def missing(self) -> list[str]:
        """Sites that took part, and of which there is no log here that can be read."""
        named = {entry["site"] for entry in self.server if entry["kind"] == "admitted"}
        return sorted(named - {site.name for site in self.sites})

    @property
    def is_simulation(self) -> bool | None:
        """Whether sites and server were one machine; None where the server's log does not say."""
        admitted = [entry["key"] for entry in self.server if entry["kind"] == "admitted"]
        return not any(admitted) if admitted else None

    @property
    def is_whole(self) -> bool:
        """Whether all records are here that can be by now, and nothing in them is wrong; seals and an end may come."""
        found = self.verification
        odd = [check for check in missing(found.checks) if check.name not in _LATER]
        return found.held and found.server is not None and bool(self.sites) and not self.missing and not odd

    @property
    def units(self) -> list[str]:
        """What is protected by the noise of all that left; a guarantee is for each unit only where it is one."""
        return sorted({unit for site in self.sites for unit in site.units})

    @property
    def has_whole_nodes(self) -> bool:
        """Whether whole nodes are protected by the server's noise, by the run's own files."""
        return self.result is not None and self.result.summary.get("client_epsilon") is not None

    @property
    def left(self) -> int:
        """Releases of all sites that left."""
        return sum(len(site.left) for site in self.sites)

    @property
    def charged(self) -> int:
        """How many more were charged for, and are not shown to have left."""
        return sum(len(site.releases) for site in self.sites) - self.left

    @property
    def bytes(self) -> int:
        """Of all that left."""
        return sum(site.bytes for site in self.sites)

    @property
    def all_noised(self) -> bool:
        """Whether no log that is here shows anything without noise."""
        return all(entry["mechanism"] is not None for site in self.sites for entry in site.releases)

    @property
    def nothing_left(self) -> bool:
        """Whether no log that is here shows anything that left or was charged for."""
        return not any(site.releases for site in self.sites)


def read_facts(folder: Path, sites: Sequence[Path] = ()) -> AuditFacts:
    """Verify a run's records and read what they say.

    Args:
        folder: Of the run.
        sites: Folders of sites whose records lie elsewhere, or bundles of them.

    Raises:
        ReportError: The folder holds no run with logs, or a file of it is damaged.
    """
    try:
        with opened_verification(folder, sites=sites) as found:
            sites_found = [_site(log, found) for log in found.sites]
    except PrivacyError as exc:
        raise ReportError(str(exc)) from exc
    server = [] if found.server is None else found.server.scan.rare
    finished = (folder / SUMMARY).is_file() and (folder / ROUNDS).is_file()
    return AuditFacts(
        folder=folder,
        verification=found,
        plan=_plan([entry for entry in server if entry["kind"] == "announced"]) or _admitted(sites_found),
        sites=sites_found,
        server=server,
        result=read_run(folder) if finished else None,
        canaries=CanaryAudit.read(folder / AUDIT / CANARIES),
        attack=AttackAudit.read(folder / AUDIT / ATTACK),
    )


def _site(log: LogRecord, found: Verification) -> SiteFacts:
    policies = log.of_kind("policy")
    return SiteFacts(
        log=log,
        policy=Policy.model_validate(policies[-1]["content"]) if policies else None,
        releases=list(log.entries(*CHARGES)),
        refusals=Counter(entry["rule"] for entry in log.of_kind("refused")),
        checks=[check for check in found.checks if check.subject == log.subject],
        promises=found.promises.get(log.subject),
    )


def _admitted(sites: list[SiteFacts]) -> RunPlan | None:
    """The plan that all sites admitted last; None where they name several."""
    plans = [_plan(site.log.of_kind("plan")) for site in sites]
    return plans[0] if plans and all(plan == plans[0] for plan in plans) else None


def _plan(entries: list[dict[str, Any]]) -> RunPlan | None:
    """The last of them; None where it cannot be read, which a check names."""
    try:
        return SignedPlan.from_text(entries[-1]["signed"]).plan if entries else None
    except (PrivacyError, ValueError):
        return None
