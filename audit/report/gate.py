"""Rules that a run's records must meet, from a file: a check for continuous integration.

    noise_multiplier_at_least = 0.7
    epsilon_at_most = 8.0
    delta_at_most = 1e-3
    clipping_norm_at_most = 1.0
    unit = "patient_id"
    require = ["countersignature", "canaries", "tls"]

A rule that the file does not name is not checked. One is always checked: the records of server and sites are here, and
verified.
"""

import operator
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.audit.records.checks import select_failed, select_missing
from fedglm.audit.report.facts import AuditFacts, SiteFacts
from fedglm.audit.report.items import Item
from fedglm.core.validation_errors import explain
from fedglm.privacy.errors import PolicyError
from fedglm.reports.formats import pluralize

Requirement = Literal[
    "verified",
    "countersignature",
    "signed-updates",
    "tls",
    "canaries",
    "attack",
    "no-metrics",
    "retention",
    "encryption",
]


class Gate(BaseModel):
    """Rules that a run must meet.

    Attributes:
        noise_multiplier_at_least: Minimum noise multiplier of every release.
        epsilon_at_most: Maximum epsilon of every data set of every site, recomputed.
        delta_at_most: Maximum delta at which each of those holds.
        clipping_norm_at_most: Maximum clipping norm of every release of an update.
        records_per_unit_at_most: Maximum number of records per unit of every release.
        unit: Unit that every release must protect.
        require: Further conditions that the records must meet.
        items: Numbers of the items of the report that must not be `not held`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    noise_multiplier_at_least: float | None = Field(default=None, gt=0)
    epsilon_at_most: float | None = Field(default=None, gt=0)
    delta_at_most: float | None = Field(default=None, gt=0, lt=1)
    clipping_norm_at_most: float | None = Field(default=None, gt=0)
    records_per_unit_at_most: int | None = Field(default=None, ge=1)
    unit: str | None = None
    require: tuple[Requirement, ...] = ()
    items: tuple[int, ...] = ()

    @classmethod
    def load(cls, path: Path) -> "Gate":
        """Read a rule file.

        Args:
            path: Path of the TOML file.

        Raises:
            PolicyError: The file cannot be read, or a rule is unknown or malformed.
        """
        try:
            return cls.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
        except ValidationError as exc:
            known = ", ".join(cls.model_fields)
            raise PolicyError(f"{path}: {explain(exc, cls)}; the rules are {known}") from exc
        except (OSError, ValueError) as exc:
            raise PolicyError(f"cannot read the rules in {path}: {exc}") from exc


@dataclass(frozen=True)
class Breach:
    """A rule that a run does not meet.

    Attributes:
        rule: Name of the rule.
        detail: Finding of the records that breaks the rule.
    """

    rule: str
    detail: str


def find_breaches(gate: Gate, facts: AuditFacts, items: list[Item]) -> list[Breach]:
    """Find all rules that the run does not meet; incomplete records break every gate.

    Args:
        gate: The rules.
        facts: Facts of the run.
        items: Items of its report.
    """
    breaches = [
        *_find_record_breaches(facts),
        *(breach for site in facts.sites for breach in _find_site_breaches(gate, site)),
    ]
    breaches += [
        Breach(name, _NOT_MET[name]) for name in gate.require if name != "verified" and not _IS_MET[name](facts)
    ]
    by_number = {item.number: item for item in items}
    for number in gate.items:
        item = by_number.get(number)
        if item is None or item.status == "not held":
            breaches.append(Breach(f"item {number}", item.title if item else "there is no such item"))
    return breaches


def _find_record_breaches(facts: AuditFacts) -> Iterator[Breach]:
    """Find what makes records incomplete or wrong, whatever the rules are."""
    failed = select_failed(facts.verification.checks)
    if failed:
        yield Breach("verified", f"{failed[0].subject}, {failed[0].name}: {failed[0].detail}")
    if facts.verification.server is None:
        yield Breach("server", "the server's log is not here, or cannot be read: who took part is not known")
    if facts.missing_sites:
        yield Breach("sites", f"no records that can be read of {', '.join(facts.missing_sites)[:300]}")
    elif not facts.sites:
        yield Breach("sites", "no site's log is here, so that nothing can be said about what left")
    # Whether sites are countersigned is a rule of its own.
    missing = [check for check in select_missing(facts.verification.checks) if check.name not in _RULED_ELSEWHERE]
    for check in missing[:1]:
        yield Breach("verified", f"{check.subject}, {check.name}: {check.detail}")


_RULED_ELSEWHERE: Final = ("sealed", "sites")
"""Checks that, when undecided, break a rule of another name."""


def _find_site_breaches(gate: Gate, site: SiteFacts) -> Iterator[Breach]:
    """Find the rules about noise and budget that a site's releases break."""
    unnoised = [entry for entry in site.releases if entry["mechanism"] is None]
    for rule, (name, violates) in _NOISE_RULES.items():
        limit = getattr(gate, rule)
        if limit is None:
            continue
        if unnoised:
            detail = f"entry {unnoised[0]['number']} left without noise, {pluralize(len(unnoised), 'release')} in all"
            yield Breach(rule, f"{site.name}: {detail}")
            continue
        # Measures are clipped to their own bounds, in other units than gradients.
        checked = [e for e in site.releases if rule != "clipping_norm_at_most" or e["purpose"] == "update"]
        violating = next((entry for entry in checked if violates(entry["mechanism"][name], limit)), None)
        if violating is not None:
            detail = f"entry {violating['number']} has {violating['mechanism'][name]}, {limit} is asked for"
            yield Breach(rule, f"{site.name}: {detail}")
    for rule, name in _BUDGET_RULES.items():
        limit = getattr(gate, rule)
        if limit is not None and (excess := _describe_excess(site, name, limit)) is not None:
            yield Breach(rule, f"{site.name}: {excess}, {limit:g} is asked for")


def _describe_excess(site: SiteFacts, name: str, limit: float) -> str | None:
    """Describe the first data set of a site that exceeds a limit; None if all keep to it."""
    if site.budgets is None:
        return "none holds"
    for budget in site.budgets:
        value = getattr(budget, name)
        if budget.epsilon is None or value is None:
            return f"{budget.data_set}: none holds"
        if value > limit:
            return f"{budget.data_set}: {value:.6g}"
    return None


_BUDGET_RULES: Final = {"epsilon_at_most": "epsilon", "delta_at_most": "delta"}
"""Rules about what each data set has spent, each with the budget's field."""


_NOISE_RULES: Final[dict[str, tuple[str, Callable[[Any, Any], bool]]]] = {
    "noise_multiplier_at_least": ("noise_multiplier", operator.lt),
    "clipping_norm_at_most": ("clipping_norm", operator.gt),
    "records_per_unit_at_most": ("records_per_unit", operator.gt),
    "unit": ("unit", operator.ne),
}
"""Rules about each release's noise, each with the mechanism's field and a comparison that is true for a breach."""


def _for_all_sites(is_met: Callable[[SiteFacts], object]) -> Callable[[AuditFacts], bool]:
    """Make a requirement of a run that holds if there are sites and each of them meets it."""
    return lambda facts: bool(facts.sites) and all(is_met(site) for site in facts.sites)


_IS_MET: Final[dict[str, Callable[[AuditFacts], bool]]] = {
    "countersignature": _for_all_sites(lambda site: site.passes("sealed")),
    "signed-updates": lambda facts: any(
        check.name == "updates" and check.passed for check in facts.verification.checks
    ),
    "tls": _for_all_sites(lambda site: site.is_linked),
    "canaries": lambda facts: bool(facts.canaries and facts.canaries.passed and facts.canaries.matches(facts.plan)),
    "attack": lambda facts: bool(facts.attack and facts.attack.matches(facts.plan)),
    "no-metrics": _for_all_sites(lambda site: all(entry["purpose"] == "update" for entry in site.releases)),
    "retention": _for_all_sites(lambda site: site.policy and site.policy.retention_days),
    "encryption": _for_all_sites(lambda site: site.policy and site.policy.state_encrypted),
}

_NOT_MET: Final = {
    "countersignature": "the server has not countersigned all that left a site",
    "signed-updates": "the server's log does not show the sites' signatures",
    "tls": "a site's log does not show by which TLS connection its updates left",
    "canaries": "no audit by canaries of the run's code and model was passed",
    "attack": "no attack on the run's code and model was tried",
    "no-metrics": "measures left a site",
    "retention": "a policy sets no period",
    "encryption": "a policy does not ask for encrypted state",
}
"""Details of a breach, by the requirement that is not met."""
