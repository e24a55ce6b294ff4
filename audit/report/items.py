"""The thirteen items of an audit report, each with what a run's records show of it.

`held` says that the records show it, `not held` that they do not, or show the contrary. Neither says that anybody
complies with anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

from fedglm.audit.empirical.bounds import mu_of_epsilon
from fedglm.audit.records.checks import Verdict, failed, missing, told
from fedglm.audit.report.facts import AuditFacts, SiteFacts
from fedglm.audit.report.words import charged_sentences, no_epsilon
from fedglm.core.code_identity import code_sha256
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.reports.formats import metric_value, significant

_OF_SITES: Final = frozenset({1, 2, 4, 5, 6, 9, 10, 11, 12})
"""Items that only sites' own records can show."""

_OF_NOISE: Final = ("noise, nobody drawn", "noise, all drawn", "fresh noise", "sampling")
"""Trials of what item 7 is about."""

_MAX_NAMES: Final = 8

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
    if number in _OF_SITES and not _are_here(facts):
        missing = f"No records that can be read of: {', '.join(facts.missing)[:300] or 'the server'}."
        return "not held" if status == "held" else status, [missing, *evidence]
    return status, evidence


def _are_here(facts: AuditFacts) -> bool:
    return facts.verification.server is not None and not facts.missing


def _held(good: bool) -> Status:
    return "held" if good else "not held"


def _guarantee(facts: AuditFacts) -> Found:
    if facts.plan is None:
        return "not held", ["No plan can be read: nothing is known of any noise."]
    if _mechanism(facts) is None and facts.all_noised:
        nothing = "Nothing left" if facts.nothing_left else "Nothing left without noise"
        return "not held", [f"{nothing}, by the sites' logs that are here; the plan has no noise."]
    if _mechanism(facts) is None:
        nodes = ["Of whole nodes, see item 3."] if facts.has_whole_nodes else []
        return "not held", [f"Updates left without noise: {no_epsilon(facts)}.", *nodes]
    good = all(site.holds("epsilon") for site in facts.sites if site.releases)
    return _held(good and not _other_units(facts)), [
        *_other_units(facts),
        *_of_each(facts, _spent),
        *_of_each(facts, _gaussian),
        "By round: in the picture of epsilon, and with every release.",
    ]


def _of_each(facts: AuditFacts, say: Callable[[SiteFacts], str]) -> list[str]:
    """What there is to say of each site; what is the same of several, once."""
    names: dict[str, list[str]] = {}
    for site in facts.sites:
        names.setdefault(say(site), []).append(site.name)
    return [f"{_named(own, len(facts.sites))}: {words}." for words, own in names.items() if words]


def _named(names: list[str], of: int) -> str:
    if len(names) == of > 1:
        return f"All {of} sites"
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _spent(site: SiteFacts) -> str:
    if not site.releases:
        return "nothing left"
    return site.said("epsilon").removeprefix(f"{site.name}: ") or "no figure counts"  # a data set may bear its name


def _gaussian(site: SiteFacts) -> str:
    promise, units = site.promise, site.policy.declare_units if site.policy else None
    if not promise or not promise.epsilon or not promise.delta or not units or len(site.promises or []) > 1:
        return ""  # the units declared are those of one data set
    return (
        f"about {mu_of_epsilon(promise.epsilon, promise.delta):.2f}-Gaussian privacy; {units:,} units declared, so "
        f"that delta times units is {promise.delta * units:.2g}"
    )


def _unit(facts: AuditFacts) -> Found:
    mechanism = _mechanism(facts)
    if mechanism is None:
        return "not held", [
            "No single record is protected. Of whole nodes, see item 3."
            if facts.has_whole_nodes
            else "No unit is protected."
        ]
    good, others = all(site.holds("releases") and site.holds("plans") for site in facts.sites), _other_units(facts)
    return _held(good and not others), [
        *(others or [f"Protected is each {mechanism.unit}, added or removed (unbounded neighbours)."]),
        f"A step looks at {mechanism.records_per_unit} records of a unit at the most, and clips them together.",
    ]


def _other_units(facts: AuditFacts) -> list[str]:
    """What there is to say where what left protects another unit than the plan's, or several."""
    mechanism = _mechanism(facts)
    if mechanism is None or not set(facts.units) - {mechanism.unit}:
        return []

    def say(site: SiteFacts) -> str:
        if not site.units - {mechanism.unit}:
            return ""
        units = " and ".join(sorted(site.units))
        return f"releases, all runs' together, protect each {units}, the plan each {mechanism.unit}"

    return [*_of_each(facts, say), f"So no epsilon is shown for each {mechanism.unit}."]


def _trust(facts: AuditFacts) -> Found:
    lines = ["The threat model, and what is not protected, are stated below."]
    if facts.has_whole_nodes:
        lines.append(
            "By the run's own files, whole nodes are protected by noise of the server, which must be trusted for that."
        )
    return "held", lines


def _applied(facts: AuditFacts) -> Found:
    mechanism, plan = _mechanism(facts), facts.plan
    if mechanism is None or plan is None:
        return "not held", ["The plan has no noise."]
    precision = (facts.result and facts.result.text("precision")) or "that of the run's recipe"
    known = "; weights are kept and norms taken in float32, by the code that is installed here and was run"
    return _held(all(site.holds("releases") and site.holds("plans") for site in facts.sites)), [
        f"Clipping norm {mechanism.clipping_norm:g}, noise multiplier {mechanism.noise_multiplier:g}, sampling rate "
        f"{mechanism.sampling_rate:.4g}, {mechanism.steps} steps a round, {plan.spec.rounds} rounds.",
        "Units are drawn by Poisson sampling; the loss is a mean over each record's own tokens, never over the batch.",
        f"Precision: {precision}{known if plan.code == code_sha256() else ''}.",
        *_of_each(facts, lambda site: f"releases: {site.said('releases')}"),
    ]


def _accounting(facts: AuditFacts) -> Found:
    if _mechanism(facts) is None:
        why = "nothing left by the plan" if facts.all_noised else no_epsilon(facts)
        return "not held", [f"There is nothing to account for: {why}."]
    good = all(site.holds("ledger") and site.holds("epsilon") for site in facts.sites if site.releases)
    return _held(good), [
        f"PRV (Opacus {_version('opacus')}) and PLD (dp-accounting {_version('dp-accounting')}): the greater counts.",
        "Recomputed now from the logs' entries, each held to its row of the ledger, over all runs that used the data.",
        *_of_each(facts, lambda site: f"{site.said('ledger')}; {_spent(site)}"),
    ]


def _all_releases(facts: AuditFacts) -> Found:
    measured = sum(entry["purpose"] == "metrics" for site in facts.sites for entry in site.left)
    names = ("ledger", "releases", "releases received")
    good = all(site.holds(name) for site in facts.sites for name in names if site.releases)
    return _held(good), [
        f"{facts.left} releases of {len(facts.sites)} sites, {facts.bytes:,} bytes; {measured} of them measures.",
        *charged_sentences(facts),
        "The number of units that a site declares is public, and chosen by people.",
        *_of_each(facts, lambda site: f"{site.said('ledger')}; {site.said('releases received')}"),
    ]


def _randomness(facts: AuditFacts) -> Found:
    plan = facts.plan
    if plan is None:
        return "not held", ["The server's log shows no plan."]
    same = plan.code == code_sha256()
    known = facts.canaries is not None and facts.canaries.is_of(plan)
    trials = [t for t in facts.canaries.trials if t.name in _OF_NOISE] if facts.canaries and known else []
    lines = [
        "Noise and sampling come from the operating system's generator (ChaCha20 keys, fresh for each call); no seed "
        "reaches them. Each value is a sum of four draws, against attacks on floating point.",
        f"The run is of code {plan.code[:16]}, "
        + ("the code that is installed here." if same else "not installed here."),
        *(f"Trial of the code, {trial.name}, {trial.outcome}: {trial.said}." for trial in trials),
    ]
    return _held(same and all(trial.outcome == "passed" for trial in trials)), lines


def _empirical(facts: AuditFacts) -> Found:
    if facts.canaries is None and facts.attack is None:
        return "not held", ["None was made: fedglm audit canaries and fedglm audit attack make one."]
    lines = []
    if (canaries := facts.canaries) is not None:
        lines = [
            f"Canaries ({found.kind}, {found.canaries:,}), in a training of the audit's own: rigorous lower bound "
            f"{found.bound:.2f} (one-run {found.one_run:.2f}, f-DP {found.f_dp:.2f}; {found.confidence:.1%} sure), "
            f"Gaussian estimate {found.estimate:.2f}, of a claim of {found.claimed:.2f} at delta {found.delta:g}."
            for found in canaries.canaries
        ]
        good = sum(trial.outcome == "passed" for trial in canaries.trials)
        lines.append(f"{good} of {len(canaries.trials)} trials of the training code passed.")
    if (attack := facts.attack) is not None:
        lines += [f"{sentence}." for sentence in attack.sentences()]
        lines.append(
            f"Attacked was one round, with the noise of epsilon {attack.epsilon:g} over a whole run; the round alone "
            f"spends {attack.round_epsilon:.2f}, at delta {attack.delta:g}."
        )
    made = [audit for audit in (canaries, attack) if audit is not None]
    for audit in made:
        lines += [f"Left out: {reason}." for reason in audit.left_out]
    if any(audit.records == "stand-in" for audit in made):
        lines.append("The sites' own records were not used, for they are at the sites: others stood in for them.")
    if not (current := all(audit.is_of(facts.plan) for audit in made)):
        lines.append("One of them was made with other code or another model than the run's: it says nothing about it.")
    return _held(current and (canaries is None or canaries.passed)), lines


def _identities(facts: AuditFacts) -> Found:
    lines = [f"{site.name} signs with {site.log.keys[-1].fingerprint()}." for site in facts.sites]
    refused = sum(sum(site.refusals.values()) for site in facts.sites)
    declined = sum(entry["kind"] == "declined" for entry in facts.server)
    lines.append(f"{refused} refusals by sites are in their logs; {declined} sites declined the plan.")
    if facts.is_simulation:
        lines.append("Sites and server were one machine: the keys show how it works, not who was there.")
    return _held(all(site.holds("key") and site.holds("policy") for site in facts.sites)), lines


def _transport(facts: AuditFacts) -> Found:
    ways = [(site.name, entry) for site in facts.sites for entry in site.log.of_kind("link")]
    if facts.is_simulation and not ways:
        return "not applicable", ["Sites and server were one machine; nothing went over a network."]
    return _held(all(site.is_linked for site in facts.sites)), [
        *dict.fromkeys(f"{name}: {way['tls']}, server's certificate {way['certificate'][:16]}." for name, way in ways),
        *_of_each(facts, lambda site: "" if site.is_linked else "the log does not show how the first update left"),
    ]


def _integrity(facts: AuditFacts) -> Found:
    found, plan = facts.verification, facts.plan
    sealed = all(site.holds("sealed") for site in facts.sites)
    lines = [f"{told(found.checks)}."]
    odd = [*failed(found.checks), *missing(found.checks)]
    lines += [f"{check.subject}, {check.name}: {check.said}." for check in odd]
    if plan is not None:
        lines.append(f"Plan {plan.sha256[:16]}, code {plan.code[:16]}, starting weights {plan.model[:16]}.")
    lines += _of_each(facts, lambda site: site.said("sealed"))
    return _held(found.verdict is Verdict.WHOLE and sealed), lines


def _storage(facts: AuditFacts) -> Found:
    policies = [site.policy for site in facts.sites]
    good = all(policy and policy.retention_days and policy.state_encrypted for policy in policies)
    return _held(good), [*_of_each(facts, _retained), *_of_each(facts, _encrypted)]


def _retained(site: SiteFacts) -> str:
    days = site.policy and site.policy.retention_days
    return f"by the policy, records are kept {days} days" if days else "the policy sets no period to keep records"


def _encrypted(site: SiteFacts) -> str:
    asked = site.policy and site.policy.state_encrypted
    return f"the policy {'asks' if asked else 'does not ask'} for node state that is encrypted at rest"


def _utility(facts: AuditFacts) -> Found:
    result = facts.result
    if result is None or result.final.metric is None:
        return "not held", ["The run's files show no result on held-out data."]
    others = {"One model on all data pooled": result.pooled, "A site alone, on average": result.alone}
    scores = {"This run": result.final, **{f"{words}, without noise": score for words, score in others.items()}}
    return _held(any(others.values())), [
        f"{words}: loss {significant(score.loss)}, {result.metric} {metric_value(result.metric, score.metric)}."
        for words, score in scores.items()
        if score is not None
    ]


def _mechanism(facts: AuditFacts) -> Mechanism | None:
    return None if facts.plan is None else facts.plan.spec.noise.mechanism


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
