"""What an audit report is made of: the verified records of a run, and what its files say."""

import contextlib
import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fedglm.privacy.accountant import spent
from fedglm.privacy.audit_checks import Check
from fedglm.privacy.audit_log import LogRecord
from fedglm.privacy.audit_verify import Verification, verify
from fedglm.privacy.charges import one_data_set
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.mechanism import Mechanism
from fedglm.privacy.plan import RunPlan, SignedPlan
from fedglm.privacy.policy import Policy
from fedglm.privacy.signed_log import AUDIT, SignedLog
from fedglm.simulations.run_record import ReportError

CANARIES, ATTACK = "canaries.json", "attack.json"
"""Files of a run's `audit/` that the empirical audits keep."""


@dataclass(frozen=True)
class SiteFacts:
    """What is known of a site.

    Attributes:
        log: Its log, verified or not.
        policy: The last that was in force; None for none.
        releases: Entries about what left, in order.
        refusals: How often each rule refused something.
        checks: Of its records.
    """

    log: LogRecord
    policy: Policy | None
    releases: list[dict[str, Any]]
    refusals: Counter[str]
    checks: list[Check]

    @property
    def name(self) -> str:
        """The site's."""
        return self.log.subject

    @cached_property
    def epsilon(self) -> float | None:
        """The greatest of its data sets, recomputed at the delta of its policy; None where none holds."""
        if any(entry["mechanism"] is None for entry in self.releases):
            return None
        if not self.releases or self.policy is None or self.policy.delta is None:
            return None if self.releases else 0.0
        pairs = {(entry["data_set"], entry["commitment"]) for entry in self.releases}
        found = 0.0
        while pairs:
            same = one_data_set(pairs, *min(pairs))
            pairs -= same
            own = [entry for entry in self.releases if (entry["data_set"], entry["commitment"]) in same]
            events = [Mechanism.from_fields(entry["mechanism"]).event() for entry in own]
            found = max(found, spent(events, self.policy.delta).epsilon)
        return found

    def holds(self, name: str) -> bool:
        """Whether all checks of that name hold."""
        found = [check.held for check in self.checks if check.name == name]
        return bool(found) and all(found)

    def said(self, name: str) -> str:
        """What the first check of that name found."""
        return next((check.said for check in self.checks if check.name == name), "")


@dataclass(frozen=True)
class AuditFacts:
    """What is known of a run.

    Attributes:
        folder: Of the run.
        verification: Of all records.
        plan: That the server announced; None where its log shows none.
        sites: By name.
        server: Entries of the server's log of which there are few.
        summary: `summary.json`, or empty.
        rows: `rounds.jsonl`.
        scenario: `scenario.toml`, or empty.
        canaries: What the canaries showed; None where nobody asked.
        attack: What the attacks showed; None where nobody asked.
    """

    folder: Path
    verification: Verification
    plan: RunPlan | None
    sites: list[SiteFacts]
    server: list[dict[str, Any]]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]
    scenario: dict[str, Any]
    canaries: dict[str, Any] | None
    attack: dict[str, Any] | None

    @property
    def missing(self) -> list[str]:
        """Sites that took part, and of which there is no log here that can be read."""
        named = {entry["site"] for entry in self.server if entry["kind"] == "admitted"}
        return sorted(named - {site.name for site in self.sites})

    @property
    def is_simulation(self) -> bool:
        """Whether sites and server were one machine."""
        return not any(entry["key"] for entry in self.server if entry["kind"] == "admitted")

    @property
    def releases(self) -> int:
        """Of all sites."""
        return sum(len(site.releases) for site in self.sites)


def read_facts(folder: Path, sites: Sequence[Path] = ()) -> AuditFacts:
    """Verify a run's records and read what they say.

    Args:
        folder: Of the run.
        sites: Folders of sites whose records lie elsewhere.

    Raises:
        ReportError: The folder holds no run with logs, or a file of it is damaged.
    """
    try:
        found = verify(folder, sites=sites)
    except PrivacyError as exc:
        raise ReportError(str(exc)) from exc
    server = [] if found.server is None else found.server.scan.rare
    sites_found = [_site(log, found) for log in found.sites]
    return AuditFacts(
        folder=folder,
        verification=found,
        plan=_plan(server) or _plan([entry for site in sites_found for entry in site.log.of_kind("plan")]),
        sites=sites_found,
        server=server,
        summary=_object(folder / "summary.json"),
        rows=_lines(folder / "rounds.jsonl"),
        scenario=_toml(folder / "scenario.toml"),
        canaries=_shaped(folder / AUDIT / CANARIES, "passed", "canaries", "trials"),
        attack=_shaped(folder / AUDIT / ATTACK, "attacks", "results"),
    )


def _site(log: LogRecord, found: Verification) -> SiteFacts:
    releases: list[dict[str, Any]] = []

    def remember(entry: dict[str, Any]) -> None:
        if entry["kind"] in ("release", "charged"):
            releases.append(entry)

    with contextlib.suppress(PrivacyError):  # what was read until there is shown, and that it is damaged
        SignedLog(log.path, remember=remember)
    policies = log.of_kind("policy")
    return SiteFacts(
        log=log,
        policy=Policy.model_validate(policies[-1]["content"]) if policies else None,
        releases=releases,
        refusals=Counter(entry["rule"] for entry in log.of_kind("refused")),
        checks=[check for check in found.checks if check.subject == log.subject],
    )


def _plan(server: list[dict[str, Any]]) -> RunPlan | None:
    announced = [entry for entry in server if entry["kind"] in ("announced", "plan")]
    try:
        return SignedPlan.from_text(announced[-1]["signed"]).plan if announced else None
    except (PrivacyError, ValueError):
        return None


def _shaped(path: Path, *names: str) -> dict[str, Any] | None:
    """What an empirical audit kept; None where there is none."""
    found = _object(path)
    if found and not all(name in found for name in names):
        raise ReportError(f"{path} is damaged: move it away, and audit again")
    return found or None


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise ReportError(f"{path} is damaged: {exc}") from exc
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as exc:
        raise ReportError(f"{path} is damaged: {exc}") from exc


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as exc:
        raise ReportError(f"{path} is damaged: {exc}") from exc
