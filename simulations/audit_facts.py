"""What an audit report is made of: the verified records of a run, and what its files say."""

import base64
import contextlib
import json
import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedglm.privacy.audit_checks import Check
from fedglm.privacy.audit_log import LogRecord
from fedglm.privacy.audit_verify import Verification, verify
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.plan import RunPlan, SignedPlan
from fedglm.privacy.policy import Policy
from fedglm.privacy.signed_log import SignedLog
from fedglm.server.run_file import AUDIT
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

    @property
    def epsilon(self) -> float | None:
        """Told with the last release; None where none holds."""
        return self.releases[-1]["epsilon"] if self.releases else 0.0

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
    return AuditFacts(
        folder=folder,
        verification=found,
        plan=_plan(server),
        sites=[_site(log, found) for log in found.sites],
        server=server,
        summary=_object(folder / "summary.json"),
        rows=_lines(folder / "rounds.jsonl"),
        scenario=_toml(folder / "scenario.toml"),
        canaries=_object(folder / AUDIT / CANARIES) or None,
        attack=_object(folder / AUDIT / ATTACK) or None,
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
    announced = [entry for entry in server if entry["kind"] == "announced"]
    try:
        return SignedPlan.from_bytes(base64.b64decode(announced[-1]["signed"])).plan if announced else None
    except (PrivacyError, ValueError):
        return None


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ReportError(f"{path} is damaged: {exc}") from exc
    return found if isinstance(found, dict) else {}


def _lines(path: Path) -> list[dict[str, Any]]:
    try:
        return [json.loads(line) for line in path.read_text().splitlines() if line]
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as exc:
        raise ReportError(f"{path} is damaged: {exc}") from exc


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as exc:
        raise ReportError(f"{path} is damaged: {exc}") from exc
