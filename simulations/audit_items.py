"""The thirteen items of an audit report, each with what a run's records show of it.

`held` says that the records show it, `not held` that they do not, or show the contrary. Neither says that anybody
complies with anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

from fedglm.privacy.audit_bounds import mu_of_epsilon
from fedglm.privacy.code_identity import code_sha256
from fedglm.privacy.mechanism import Mechanism
from fedglm.simulations.audit_facts import AuditFacts

_OF_SITES: Final = frozenset({1, 4, 5, 6, 9, 11, 12})
"""Items that only sites' own records can show."""

Status = Literal["held", "not held", "not applicable"]
Found = tuple[Status, list[str]]


@dataclass(frozen=True)
class Item:
    """One item.

    Attributes:
        number: From 1 to 13.
        title: What it is about.
        status: See the module.
        evidence: What the records show, in sentences.
    """

    number: int
    title: str
    status: Status
    evidence: list[str]


def items(facts: AuditFacts) -> list[Item]:
    """All thirteen."""
    return [Item(number, title, *_found(number, find, facts)) for number, (title, find) in enumerate(_ITEMS, 1)]


def _found(number: int, find: Callable[[AuditFacts], Found], facts: AuditFacts) -> Found:
    if number in _OF_SITES and not facts.sites:
        return "not held", ["No site's records are here: name the sites' folders with --site."]
    status, evidence = find(facts)
    if number in _OF_SITES and facts.missing:
        lines = f"No records that can be read of: {', '.join(facts.missing)[:300]}."
        return "not held" if status == "held" else status, [lines, *evidence]
    return status, evidence


def _held(good: bool) -> Status:
    return "held" if good else "not held"


def _guarantee(facts: AuditFacts) -> Found:
    if facts.plan is None:
        return "not held", ["No plan can be read: nothing is known of any noise."]
    if _mechanism(facts) is None:
        return "not held", ["Updates left without noise: no epsilon holds for anybody."]
    lines = []
    for site in facts.sites:
        policy = site.policy
        lines.append(f"{site.said('epsilon') or site.name + ': nothing left'}.")
        if site.epsilon and policy is not None and policy.delta is not None:
            mu = mu_of_epsilon(site.epsilon, policy.delta)
            units = policy.declare_units or 0
            lines.append(
                f"{site.name}: about {mu:.2f}-Gaussian privacy; {units:,} units declared, so that delta times units is "
                f"{policy.delta * units:.2g}."
            )
    return _held(all(site.holds("epsilon") for site in facts.sites if site.releases)), lines


def _unit(facts: AuditFacts) -> Found:
    mechanism = _mechanism(facts)
    if mechanism is None:
        return "not held", ["No unit is protected."]
    return "held", [
        f"Protected is each {mechanism.unit}, added or removed (unbounded neighbours).",
        f"A step looks at {mechanism.records_per_unit} records of a unit at the most, and clips them together.",
    ]


def _trust(facts: AuditFacts) -> Found:
    lines = ["The threat model, and what is not protected, are stated below."]
    if facts.summary.get("client_epsilon") is not None:
        lines.append("Whole nodes are protected by noise of the server, which must be trusted for that.")
    return "held", lines


def _applied(facts: AuditFacts) -> Found:
    mechanism, plan = _mechanism(facts), facts.plan
    if mechanism is None or plan is None:
        return "not held", ["The plan has no noise."]
    precision = facts.summary.get("precision") or "the recipe's"
    return _held(all(site.holds("releases") and site.holds("plans") for site in facts.sites)), [
        f"Clipping norm {mechanism.clipping_norm:g}, noise multiplier {mechanism.noise_multiplier:g}, sampling rate "
        f"{mechanism.sampling_rate:.4g}, {mechanism.steps} steps a round, {plan.rounds} rounds.",
        "Units are drawn by Poisson sampling; the loss is a mean over each record's own tokens, never over the batch.",
        f"Precision: {precision}, over float32 masters; norms are taken in float32.",
        "Every release is held to its plan and policy, entry by entry.",
    ]


def _accounting(facts: AuditFacts) -> Found:
    if _mechanism(facts) is None:
        return "not held", ["There is nothing to account for: no epsilon holds."]
    lines = [f"{site.name}: {site.said('ledger')}; {site.said('epsilon')}." for site in facts.sites]
    good = all(site.holds("ledger") and site.holds("epsilon") for site in facts.sites if site.releases)
    return _held(good), [
        f"PRV (Opacus {_version('opacus')}) and PLD (dp-accounting {_version('dp-accounting')}): the greater counts.",
        "Recomputed now, from the ledgers' rows alone, over all runs that used the data.",
        *lines,
    ]


def _all_releases(facts: AuditFacts) -> Found:
    measured = sum(entry["purpose"] == "metrics" for site in facts.sites for entry in site.releases)
    size = sum(entry.get("bytes", 0) for site in facts.sites for entry in site.releases)
    names = ("ledger", "releases", "releases received")
    good = all(site.holds(name) for site in facts.sites for name in names if site.releases)
    return _held(good), [
        f"{facts.releases} releases of {len(facts.sites)} sites, {size:,} bytes; {measured} of them measures.",
        "The number of units that a site declares is public, and chosen by people.",
        "The log has one entry for each row of the ledger, and the server took nothing that the logs do not show.",
    ]


def _randomness(facts: AuditFacts) -> Found:
    plan = facts.plan
    if plan is None:
        return "not held", ["The server's log shows no plan."]
    same = plan.code == code_sha256()
    trials = [] if facts.canaries is None else [t for t in facts.canaries["trials"] if t["name"].startswith("fresh")]
    lines = [
        "Noise and sampling come from the operating system's generator (ChaCha20 keys, fresh for each call); no seed "
        "reaches them. Each value is a sum of four draws, against attacks on floating point.",
        f"The run is of code {plan.code[:16]}, "
        + ("the code that is installed here." if same else "not installed here."),
        *(f"Trial of the code: {trial['said']}." for trial in trials),
    ]
    return _held(same and all(trial["passed"] for trial in trials)), lines


def _empirical(facts: AuditFacts) -> Found:
    if facts.canaries is None and facts.attack is None:
        return "not held", ["None was made: fedglm audit canaries and fedglm audit attack make one."]
    lines = []
    if facts.canaries is not None:
        lines = [
            f"Canaries ({found['kind']}, {found['canaries']:,}): rigorous lower bound {found['bound']:.2f}, estimate "
            f"{found['estimate']:.2f}, of a claim of {found['claimed']:.2f} (a run of the audit's own)."
            for found in facts.canaries["canaries"]
        ]
        good = sum(trial["passed"] for trial in facts.canaries["trials"])
        lines.append(f"{good} of {len(facts.canaries['trials'])} trials of the training code passed.")
    if facts.attack is not None:
        lines += [f"{found['name']}: {found['said']}." for found in facts.attack["attacks"]]
    return _held(facts.canaries is None or bool(facts.canaries["passed"])), lines


def _identities(facts: AuditFacts) -> Found:
    lines = [f"{site.name} signs with {site.log.keys[-1].fingerprint()}." for site in facts.sites]
    refused = sum(sum(site.refusals.values()) for site in facts.sites)
    declined = sum(entry["kind"] == "declined" for entry in facts.server)
    lines.append(f"{refused} refusals by sites are in their logs; {declined} sites declined the plan.")
    if facts.is_simulation:
        lines.append("Sites and server were one machine: the keys show how it works, not who was there.")
    return _held(all(site.holds("key") and site.holds("policy") for site in facts.sites)), lines


def _transport(facts: AuditFacts) -> Found:
    links = [(site.name, entry) for site in facts.sites for entry in site.log.of_kind("link")]
    if facts.is_simulation and not links:
        return "not applicable", ["Sites and server were one machine; nothing went over a network."]
    lines = [f"{name}: {link['tls']}, server's certificate {link['certificate'][:16]}." for name, link in links]
    with_link = {name for name, _ in links}
    return _held(with_link == {site.name for site in facts.sites}), lines or ["No log shows how a site was connected."]


def _integrity(facts: AuditFacts) -> Found:
    found, plan = facts.verification, facts.plan
    sealed = all(site.holds("countersignature") for site in facts.sites)
    lines = [f"{sum(check.held is True for check in found.checks)} of {len(found.checks)} checks hold."]
    lines += [f"{check.subject}, {check.name}: {check.said}." for check in found.checks if check.held is False]
    if plan is not None:
        lines.append(f"Plan {plan.sha256[:16]}, code {plan.code[:16]}, starting weights {plan.model[:16]}.")
    lines += [f"{site.name}: {site.said('countersignature')} countersigned." for site in facts.sites]
    return _held(found.held and sealed), lines


def _storage(facts: AuditFacts) -> Found:
    kept = {site.name: site.policy.retention_days if site.policy else None for site in facts.sites}
    lines = [
        f"{name}: {f'records are kept {days} days' if days else 'no period is set'}." for name, days in kept.items()
    ]
    encrypted = {site.name: bool(site.policy and site.policy.state_encrypted) for site in facts.sites}
    lines += [f"{name}: node state is {'' if good else 'not '}encrypted at rest." for name, good in encrypted.items()]
    return _held(all(kept.values()) and all(encrypted.values())), lines


def _utility(facts: AuditFacts) -> Found:
    summary = facts.summary
    metric = next((name for name in ("accuracy", "perplexity") if name in summary), None)
    if metric is None:
        return "not held", ["The run's files show no result on held-out data."]
    baselines = summary.get("baselines") or {}
    lines = [f"This run: loss {_short(summary.get('loss'))}, {metric} {_short(summary.get(metric))}."]
    for name, words in (("pooled", "One model on all data pooled"), ("alone", "A site alone, on average")):
        found = baselines.get(name)
        if found:
            lines.append(f"{words}, without noise: loss {_short(found['loss'])}, {metric} {_short(found[metric])}.")
    return _held(bool(baselines.get("pooled") or baselines.get("alone"))), lines


def _mechanism(facts: AuditFacts) -> Mechanism | None:
    return None if facts.plan is None else facts.plan.mechanism


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not told"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


_ITEMS: Final[list[tuple[str, Callable[[AuditFacts], Found]]]] = [
    ("Guarantee: epsilon, delta, units, by round", _guarantee),
    ("Unit of privacy and neighbours", _unit),
    ("Who is trusted, and what is not protected", _trust),
    ("Mechanism as it was applied", _applied),
    ("Accounting, checked twice, over every run", _accounting),
    ("All that was released", _all_releases),
    ("Randomness and floating point", _randomness),
    ("Empirical audits", _empirical),
    ("Identities, approvals, refusals", _identities),
    ("Transport", _transport),
    ("Integrity of model, code, policy and records", _integrity),
    ("Encryption at rest and retention", _storage),
    ("Utility, with and without privacy", _utility),
]
