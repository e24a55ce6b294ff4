"""Rules that a run's records must meet, from a file: a check for continuous integration.

    noise_multiplier_at_least = 0.7
    epsilon_at_most = 8.0
    delta_at_most = 1e-3
    clipping_norm_at_most = 1.0
    unit = "patient_id"
    require = ["countersignature", "canaries", "tls"]

What a file does not name is not asked for, but for one thing: the records of server and sites are here, and verified.
"""

import operator
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.audit.records.checks import failed, missing
from fedglm.audit.report.facts import AuditFacts, SiteFacts
from fedglm.audit.report.items import Item
from fedglm.core.validation_errors import explain
from fedglm.privacy.errors import PolicyError
from fedglm.reports.formats import counted

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
    """What is asked of a run.

    Attributes:
        noise_multiplier_at_least: Of every release.
        epsilon_at_most: Of every data set of every site, recomputed.
        delta_at_most: At which each of those is told.
        clipping_norm_at_most: Of every release.
        records_per_unit_at_most: Of every release.
        unit: What must be protected.
        require: What the records must show besides.
        items: Numbers of the items of the report that must be held.
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

        Raises:
            PolicyError: It cannot be read, or a rule is unknown or malformed.
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
        rule: Its name.
        said: What was found.
    """

    rule: str
    said: str


def breaches(gate: Gate, facts: AuditFacts, found: list[Item]) -> list[Breach]:
    """All rules that the run does not meet; records that are not whole, or not all here, break every gate.

    Args:
        gate: The rules.
        facts: Of the run.
        found: The items of its report.
    """
    broken = [*_records(facts), *(breach for site in facts.sites for breach in _of_site(gate, site))]
    broken += [Breach(name, _NOT[name]) for name in gate.require if name != "verified" and not _HOLDS[name](facts)]
    status = {item.number: item for item in found}
    for number in gate.items:
        item = status.get(number)
        if item is None or item.status == "not held":
            broken.append(Breach(f"item {number}", item.title if item else "there is no such item"))
    return broken


def _records(facts: AuditFacts) -> Iterator[Breach]:
    wrong = failed(facts.verification.checks)
    if wrong:
        yield Breach("verified", f"{wrong[0].subject}, {wrong[0].name}: {wrong[0].said}")
    if facts.verification.server is None:
        yield Breach("server", "the server's log is not here, or cannot be read: who took part is not known")
    if facts.missing:
        yield Breach("sites", f"no records that can be read of {', '.join(facts.missing)[:300]}")
    elif not facts.sites:
        yield Breach("sites", "no site's log is here, so that nothing can be said about what left")
    # Whether sites are sealed is a rule of its own.
    for check in [check for check in missing(facts.verification.checks) if check.name not in _RULES_OF_THEIR_OWN][:1]:
        yield Breach("verified", f"{check.subject}, {check.name}: {check.said}")


_RULES_OF_THEIR_OWN: Final = ("sealed", "sites")
"""Checks whose being open breaks a rule of another name."""


def _of_site(gate: Gate, site: SiteFacts) -> Iterator[Breach]:
    bare = [entry for entry in site.releases if entry["mechanism"] is None]
    for rule, (name, wrong) in _OF_NOISE.items():
        limit = getattr(gate, rule)
        if limit is None:
            continue
        if bare:
            said = f"entry {bare[0]['number']} left without noise, {counted(len(bare), 'release')} in all"
            yield Breach(rule, f"{site.name}: {said}")
            continue
        # Measures are cut to their own bounds, in other units than gradients.
        held = [e for e in site.releases if rule != "clipping_norm_at_most" or e["purpose"] == "update"]
        odd = next((entry for entry in held if wrong(entry["mechanism"][name], limit)), None)
        if odd is not None:
            said = f"entry {odd['number']} has {odd['mechanism'][name]}, {limit} is asked for"
            yield Breach(rule, f"{site.name}: {said}")
    for rule, name in _TOLD.items():
        limit = getattr(gate, rule)
        if limit is not None and (beyond := _beyond(site, name, limit)) is not None:
            yield Breach(rule, f"{site.name}: {beyond}, {limit:g} is asked for")


def _beyond(site: SiteFacts, name: str, limit: float) -> str | None:
    """What the first of its data sets has that does not keep to the limit; None where all do."""
    if site.promises is None:
        return "none holds"
    for promise in site.promises:
        value = getattr(promise, name)
        if promise.epsilon is None or value is None:
            return f"{promise.data_set}: none holds"
        if value > limit:
            return f"{promise.data_set}: {value:.6g}"
    return None


_TOLD: Final = {"epsilon_at_most": "epsilon", "delta_at_most": "delta"}
"""Rules of what each data set has spent, and the field."""


_OF_NOISE: Final[dict[str, tuple[str, Callable[[Any, Any], bool]]]] = {
    "noise_multiplier_at_least": ("noise_multiplier", operator.lt),
    "clipping_norm_at_most": ("clipping_norm", operator.gt),
    "records_per_unit_at_most": ("records_per_unit", operator.gt),
    "unit": ("unit", operator.ne),
}
"""Rules of each release's noise: the field, and when it is wrong."""


def _sites(holds: Callable[[SiteFacts], object]) -> Callable[[AuditFacts], bool]:
    return lambda facts: bool(facts.sites) and all(holds(site) for site in facts.sites)


_HOLDS: Final[dict[str, Callable[[AuditFacts], bool]]] = {
    "countersignature": _sites(lambda site: site.holds("sealed")),
    "signed-updates": lambda facts: any(check.name == "updates" and check.held for check in facts.verification.checks),
    "tls": _sites(lambda site: site.is_linked),
    "canaries": lambda facts: bool(facts.canaries and facts.canaries.passed and facts.canaries.is_of(facts.plan)),
    "attack": lambda facts: bool(facts.attack and facts.attack.is_of(facts.plan)),
    "no-metrics": _sites(lambda site: all(entry["purpose"] == "update" for entry in site.releases)),
    "retention": _sites(lambda site: site.policy and site.policy.retention_days),
    "encryption": _sites(lambda site: site.policy and site.policy.state_encrypted),
}

_NOT: Final = {
    "countersignature": "the server has not countersigned all that left a site",
    "signed-updates": "the server's log does not show the sites' signatures",
    "tls": "a site's log does not show by which TLS connection its updates left",
    "canaries": "no audit by canaries of the run's code and model was passed",
    "attack": "no attack on the run's code and model was tried",
    "no-metrics": "measures left a site",
    "retention": "a policy sets no period",
    "encryption": "a policy does not ask for encrypted state",
}
"""What is found where a requirement is not met."""
