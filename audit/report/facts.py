"""The facts that an audit report is made of: the verified records of a run, and what its files say."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fedglm.audit.empirical.results import ATTACK, CANARIES, AttackAudit, CanaryAudit
from fedglm.audit.records.checks import Check, select_missing
from fedglm.audit.records.log_records import LogRecord
from fedglm.audit.verify.site_records import DataSetBudget
from fedglm.audit.verify.verification import Verification, open_verification
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.log.entries import CHARGES
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.run_plan import RunPlan, SignedPlan
from fedglm.run_folder.names import AUDIT, ROUNDS, SUMMARY
from fedglm.run_folder.record import ReportError, RunRecord, read_run

_OPEN_DURING_RUN: Final = ("sealed", "model")
"""Checks that are undecided while a run is under way."""


@dataclass(frozen=True)
class SiteFacts:
    """Facts about a site, from its records.

    Attributes:
        log: The site's log, whether its checks passed or not.
        policy: The policy that was in force last; None for none.
        releases: Entries about releases, sent or only charged for, in order.
        refusals: Number of refusals by each rule.
        checks: Checks of the site's records.
        budgets: Budget spent by each of its data sets; None if no figure is valid.
    """

    log: LogRecord
    policy: Policy | None
    releases: list[dict[str, Any]]
    refusals: Counter[str]
    checks: list[Check]
    budgets: list[DataSetBudget] | None

    @property
    def name(self) -> str:
        """Name of the site."""
        return self.log.subject

    @property
    def weakest_budget(self) -> DataSetBudget | None:
        """A budget without a valid epsilon, or else the one with the largest; None if there is none."""
        unbounded = [budget for budget in self.budgets or [] if budget.epsilon is None]
        return next(iter(unbounded), max(self.budgets or [], key=lambda budget: budget.epsilon or 0.0, default=None))

    @property
    def epsilon(self) -> float | None:
        """Largest epsilon of its data sets; None if one has none, or no figure is valid.

        It holds at the delta of `weakest_budget`.
        """
        if self.budgets is None:
            return None
        return 0.0 if self.weakest_budget is None else self.weakest_budget.epsilon

    @property
    def sent_releases(self) -> list[dict[str, Any]]:
        """Releases that left the site.

        A release that a node charged for before it was killed there is absent, unless it was sent later.
        """
        resent = {entry["release"] for entry in self.log.rare_entries("resent")}
        return [entry for entry in self.releases if entry["kind"] == "release" or entry["release"] in resent]

    @property
    def sent_bytes(self) -> int:
        """Bytes of all that left the site, including what was sent again."""
        return sum(entry.get("bytes", 0) for entry in [*self.releases, *self.log.rare_entries("resent")])

    @property
    def units(self) -> set[str]:
        """Units that the noise of its releases protects, including those of earlier runs."""
        return {entry["mechanism"]["unit"] for entry in self.releases if entry["mechanism"] is not None}

    @property
    def is_linked(self) -> bool:
        """Whether its log shows the connection by which the first release left."""
        links = self.log.rare_entries("link")
        return bool(links) and all(links[0]["number"] < entry["number"] for entry in self.releases[:1])

    def passes(self, name: str) -> bool:
        """Return whether all checks of that name passed, of which there is at least one."""
        outcomes = [check.passed for check in self.checks if check.name == name]
        return bool(outcomes) and all(outcomes)

    def details(self, name: str) -> str:
        """Return the details of the checks of that name."""
        return "; ".join(check.detail for check in self.checks if check.name == name)


@dataclass(frozen=True)
class AuditFacts:
    """Facts about a run, from its records and files.

    Attributes:
        folder: Folder of the run.
        verification: Verification of all records.
        plan: Plan that the server announced, or that all sites here admitted last; None if neither is shown.
        sites: Facts of the sites, in the order of their logs.
        server_entries: Entries of the server's log of kinds of which there are few.
        result: Results in the run's own files; None if the run has not finished.
        canaries: Result of the canary audit; None if it was not made.
        attack: Result of the attacks; None if they were not made.
    """

    folder: Path
    verification: Verification
    plan: RunPlan | None
    sites: list[SiteFacts]
    server_entries: list[dict[str, Any]]
    result: RunRecord | None
    canaries: CanaryAudit | None
    attack: AttackAudit | None

    @property
    def missing_sites(self) -> list[str]:
        """Sites that took part, and of which no log here can be read."""
        named = {entry["site"] for entry in self.server_entries if entry["kind"] == "admitted"}
        return sorted(named - {site.name for site in self.sites})

    @property
    def is_simulation(self) -> bool | None:
        """Whether sites and server were one machine; None if the server's log does not say."""
        admitted = [entry["key"] for entry in self.server_entries if entry["kind"] == "admitted"]
        return not any(admitted) if admitted else None

    @property
    def is_whole(self) -> bool:
        """Whether all records are here that can be by now, and nothing in them is wrong.

        Countersignatures and an end of the run may still come.
        """
        verification = self.verification
        lacking = [check for check in select_missing(verification.checks) if check.name not in _OPEN_DURING_RUN]
        return (
            verification.passed
            and verification.server is not None
            and bool(self.sites)
            and not self.missing_sites
            and not lacking
        )

    @property
    def units(self) -> list[str]:
        """Units that the noise of all releases protects; a guarantee is for each unit only if there is one kind."""
        return sorted({unit for site in self.sites for unit in site.units})

    @property
    def has_whole_node_noise(self) -> bool:
        """Whether whole nodes are protected by the server's noise, by the run's own files."""
        return self.result is not None and self.result.summary.get("client_epsilon") is not None

    @property
    def sent_count(self) -> int:
        """Number of releases that left, of all sites."""
        return sum(len(site.sent_releases) for site in self.sites)

    @property
    def unsent_count(self) -> int:
        """Number of releases that were charged for, and are not shown to have left."""
        return sum(len(site.releases) for site in self.sites) - self.sent_count

    @property
    def sent_bytes(self) -> int:
        """Bytes of all that left."""
        return sum(site.sent_bytes for site in self.sites)

    @property
    def all_noised(self) -> bool:
        """Whether no log that is here shows a release without noise."""
        return all(entry["mechanism"] is not None for site in self.sites for entry in site.releases)

    @property
    def nothing_left(self) -> bool:
        """Whether no log that is here shows a release that left or was charged for."""
        return not any(site.releases for site in self.sites)


def read_facts(folder: Path, sites: Sequence[Path] = ()) -> AuditFacts:
    """Verify a run's records and read what they say.

    Args:
        folder: Folder of the run.
        sites: Folders of sites whose records are elsewhere, or bundles of them.

    Raises:
        ReportError: The folder holds no run with logs, or a file of it is damaged.
    """
    try:
        with open_verification(folder, sites=sites) as verification:
            site_facts = [_read_site(log, verification) for log in verification.sites]
    except PrivacyError as exc:
        raise ReportError(str(exc)) from exc
    server_entries = [] if verification.server is None else verification.server.scan.rare
    finished = (folder / SUMMARY).is_file() and (folder / ROUNDS).is_file()
    return AuditFacts(
        folder=folder,
        verification=verification,
        plan=_read_last_plan([entry for entry in server_entries if entry["kind"] == "announced"])
        or _find_common_plan(site_facts),
        sites=site_facts,
        server_entries=server_entries,
        result=read_run(folder) if finished else None,
        canaries=CanaryAudit.read(folder / AUDIT / CANARIES),
        attack=AttackAudit.read(folder / AUDIT / ATTACK),
    )


def _read_site(log: LogRecord, verification: Verification) -> SiteFacts:
    """Collect the facts about a site; its log must still be readable."""
    policies = log.rare_entries("policy")
    return SiteFacts(
        log=log,
        policy=Policy.model_validate(policies[-1]["content"]) if policies else None,
        releases=list(log.read_entries(*CHARGES)),
        refusals=Counter(entry["rule"] for entry in log.rare_entries("refused")),
        checks=[check for check in verification.checks if check.subject == log.subject],
        budgets=verification.budgets.get(log.subject),
    )


def _find_common_plan(sites: list[SiteFacts]) -> RunPlan | None:
    """Return the plan that all sites admitted last; None if they name several."""
    plans = [_read_last_plan(site.log.rare_entries("plan")) for site in sites]
    return plans[0] if plans and all(plan == plans[0] for plan in plans) else None


def _read_last_plan(entries: list[dict[str, Any]]) -> RunPlan | None:
    """Read the plan of the last entry; None if it cannot be read, which a check reports."""
    try:
        return SignedPlan.from_text(entries[-1]["signed"]).plan if entries else None
    except (PrivacyError, ValueError):
        return None
