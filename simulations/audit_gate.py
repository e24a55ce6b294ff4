"""Rules that a run's records must meet, from a file: a check for continuous integration.

    noise_multiplier_at_least = 0.7
    epsilon_at_most = 8.0
    delta_at_most = 1e-3
    clipping_norm_at_most = 1.0
    unit = "patient_id"
    require = ["verified", "countersignature", "canaries", "tls"]

What a file does not name is not asked for.
"""

import operator
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedglm.privacy.errors import PolicyError
from fedglm.simulations.audit_facts import AuditFacts, SiteFacts
from fedglm.simulations.audit_items import Item

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
        epsilon_at_most: Of every site, recomputed.
        delta_at_most: At which epsilon is told.
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
            first = exc.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            known = ", ".join(cls.model_fields)
            raise PolicyError(f"{path}: {place}: {first['msg']}; the rules are {known}") from exc
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
    """All rules that the run does not meet.

    Args:
        gate: The rules.
        facts: Of the run.
        found: The items of its report.
    """
    broken = [breach for site in facts.sites for breach in _of_site(gate, site)]
    if facts.missing:
        broken.append(Breach("sites", f"no records that can be read of {', '.join(facts.missing)[:300]}"))
    elif not facts.sites:
        broken.append(Breach("sites", "no site's log is here, so that nothing can be said about what left"))
    broken += [Breach(name, said) for name, said in _required(gate, facts)]
    status = {item.number: item for item in found}
    for number in gate.items:
        item = status.get(number)
        if item is None or item.status == "not held":
            broken.append(Breach(f"item {number}", item.title if item else "there is no such item"))
    return broken


def _of_site(gate: Gate, site: SiteFacts) -> list[Breach]:
    broken = []
    bare = [entry for entry in site.releases if entry["mechanism"] is None]
    asked = (gate.noise_multiplier_at_least, gate.epsilon_at_most, gate.clipping_norm_at_most, gate.unit)
    if bare and any(asked):
        said = f"{site.name}: entry {bare[0]['number']} left without noise, {len(bare)} releases in all"
        return [Breach("noise_multiplier_at_least", said)]
    noise = [(entry["number"], entry["mechanism"]) for entry in site.releases]
    for number, fields in noise:
        for rule, name, wrong in (
            ("noise_multiplier_at_least", "noise_multiplier", operator.lt),
            ("clipping_norm_at_most", "clipping_norm", operator.gt),
            ("records_per_unit_at_most", "records_per_unit", operator.gt),
            ("unit", "unit", operator.ne),
        ):
            limit = getattr(gate, rule)
            if limit is not None and wrong(fields[name], limit):
                broken.append(Breach(rule, f"{site.name}: entry {number} has {fields[name]}, {limit} is asked for"))
    first = {breach.rule: breach for breach in reversed(broken)}  # one for each rule
    broken = list(reversed(first.values()))
    if gate.epsilon_at_most is not None and (site.epsilon is None or site.epsilon > gate.epsilon_at_most):
        broken.append(Breach("epsilon_at_most", f"{site.name}: {site.epsilon}, {gate.epsilon_at_most} is asked for"))
    delta = site.policy.delta if site.policy else None
    if gate.delta_at_most is not None and (delta is None or delta > gate.delta_at_most):
        broken.append(Breach("delta_at_most", f"{site.name}: {delta}, {gate.delta_at_most} is asked for"))
    return broken


def _required(gate: Gate, facts: AuditFacts) -> list[tuple[str, str]]:
    missing: list[tuple[str, str]] = []
    held = {check.name for check in facts.verification.checks if check.held}
    policies = [site.policy for site in facts.sites]
    for name in gate.require:
        good, said = {
            "verified": (facts.verification.held, "a record was changed or contradicts another"),
            "countersignature": (
                bool(facts.sites) and all(site.holds("countersignature") for site in facts.sites),
                "a site's log is not countersigned by the server",
            ),
            "signed-updates": ("updates" in held, "the server's log does not show the sites' signatures"),
            "tls": (
                bool(facts.sites) and all(site.log.of_kind("link") for site in facts.sites),
                "a site's log does not show a TLS connection",
            ),
            "canaries": (bool((facts.canaries or {}).get("passed")), "no audit by canaries was passed"),
            "attack": (facts.attack is not None, "no attack was tried"),
            "no-metrics": (
                all(entry["purpose"] == "update" for site in facts.sites for entry in site.releases),
                "measures left a site",
            ),
            "retention": (all(p is not None and p.retention_days for p in policies), "a policy sets no period"),
            "encryption": (
                all(p is not None and p.state_encrypted for p in policies),
                "a policy does not ask for encrypted state",
            ),
        }[name]
        if not good:
            missing.append((name, said))
    return missing
