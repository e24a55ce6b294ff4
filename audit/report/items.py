"""The thirteen items of an audit report, each with what a run's records show about it.

The status `held` means that the records show it, `not held` that they do not, or show the contrary. Neither means that
anybody complies with anything.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Final, Literal

from fedglm.audit.empirical.bounds import convert_epsilon_to_mu
from fedglm.audit.records.checks import Verdict, describe_checks, select_failed, select_missing
from fedglm.audit.report.facts import AuditFacts, SiteFacts
from fedglm.audit.report.sentences import describe_charged, describe_no_epsilon
from fedglm.audit.verify.light_release import NAME as LIGHT
from fedglm.core.code_identity import code_sha256
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.reports.formats import format_metric, format_number

_NEED_SITES: Final = frozenset({1, 2, 4, 5, 6, 9, 10, 11, 12})
"""Items that only the sites' own records can show."""

_NOISE_TRIALS: Final = ("noise, nobody drawn", "noise, all drawn", "fresh noise", "sampling")
"""Trials of the randomness that item 7 is about."""

_MAX_NAMED: Final = 8

Status = Literal["held", "not held", "not applicable"]
Assessment = tuple[Status, list[str]]


@dataclass(frozen=True)
class Item:
    """One item of the report.

    Attributes:
        number: Number of the item, from 1 to 13.
        title: Subject of the item.
        status: Status; see the module.
        evidence: Sentences about what the records show.
    """

    number: int
    title: str
    status: Status
    evidence: list[str]


def assess_items(facts: AuditFacts) -> list[Item]:
    """Assess all thirteen items."""
    return [Item(number, title, *_assess(number, assess, facts)) for number, (title, assess) in enumerate(_ITEMS, 1)]


def _assess(number: int, assess: Callable[[AuditFacts], Assessment], facts: AuditFacts) -> Assessment:
    """Assess one item; without the records of all sites, an item that needs them is not held."""
    if number in _NEED_SITES and not facts.sites:
        return "not held", ["No site's records are here: name the sites' folders with --site."]
    status, evidence = assess(facts)
    if number in _NEED_SITES and not _has_all_logs(facts):
        missing = f"No records that can be read of: {', '.join(facts.missing_sites)[:300] or 'the server'}."
        return "not held" if status == "held" else status, [missing, *evidence]
    return status, evidence


def _has_all_logs(facts: AuditFacts) -> bool:
    """Return whether the logs of the server and of all sites that took part are here."""
    return facts.verification.server is not None and not facts.missing_sites


def _to_status(passed: bool) -> Status:
    return "held" if passed else "not held"


def _assess_guarantee(facts: AuditFacts) -> Assessment:
    if facts.plan is None:
        return "not held", ["No plan can be read: nothing is known of any noise."]
    if _get_mechanism(facts) is None and facts.all_noised:
        nothing = "Nothing left" if facts.nothing_left else "Nothing left without noise"
        return "not held", [f"{nothing}, by the sites' logs that are here; the plan has no noise."]
    if _get_mechanism(facts) is None:
        whole_nodes = ["Of whole nodes, see item 3."] if facts.has_whole_node_noise else []
        return "not held", [f"Updates left without noise: {describe_no_epsilon(facts)}.", *whole_nodes]
    passed = all(site.passes("epsilon") for site in facts.sites if site.releases)
    return _to_status(passed and not _describe_other_units(facts)), [
        *_describe_other_units(facts),
        *_describe_sites(facts, _describe_spent),
        *_describe_sites(facts, _describe_gaussian),
        "By round: in the picture of epsilon, and with every release.",
    ]


def _describe_sites(facts: AuditFacts, describe: Callable[[SiteFacts], str]) -> list[str]:
    """Describe each site; sites of the same description share one sentence."""
    names: dict[str, list[str]] = {}
    for site in facts.sites:
        names.setdefault(describe(site), []).append(site.name)
    return [f"{_join_names(sharing, len(facts.sites))}: {words}." for words, sharing in names.items() if words]


def _join_names(names: list[str], of: int) -> str:
    """Join names of sites, `of` being the number of all sites."""
    if len(names) == of > 1:
        return f"All {of} sites"
    omitted = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {omitted} more" if omitted > 0 else "")


def _describe_spent(site: SiteFacts) -> str:
    """Describe the epsilon that a site has spent."""
    if not site.releases:
        return "nothing left"
    # The details begin with the data set's name, which may be the site's.
    return site.details("epsilon").removeprefix(f"{site.name}: ") or "no figure counts"


def _describe_gaussian(site: SiteFacts) -> str:
    """Describe a site's epsilon as Gaussian privacy, and its delta beside the number of units."""
    budget, units = site.weakest_budget, site.policy.declare_units if site.policy else None
    if not budget or not budget.epsilon or not budget.delta or not units or len(site.budgets or []) > 1:
        return ""  # the policy declares the units of one data set
    return (
        f"about {convert_epsilon_to_mu(budget.epsilon, budget.delta):.2f}-Gaussian privacy; {units:,} units declared, "
        f"so that delta times units is {budget.delta * units:.2g}"
    )


def _assess_unit(facts: AuditFacts) -> Assessment:
    mechanism = _get_mechanism(facts)
    if mechanism is None:
        return "not held", [
            "No single record is protected. Of whole nodes, see item 3."
            if facts.has_whole_node_noise
            else "No unit is protected."
        ]
    passed = all(site.passes("releases") and site.passes("plans") for site in facts.sites)
    others = _describe_other_units(facts)
    return _to_status(passed and not others), [
        *(others or [f"Protected is each {mechanism.unit}, added or removed (unbounded neighbours)."]),
        f"A step looks at {mechanism.records_per_unit} records of a unit at the most, and clips them together.",
    ]


def _describe_other_units(facts: AuditFacts) -> list[str]:
    """Describe releases that protect another unit than the plan's, or several."""
    mechanism = _get_mechanism(facts)
    if mechanism is None or not set(facts.units) - {mechanism.unit}:
        return []

    def describe(site: SiteFacts) -> str:
        if not site.units - {mechanism.unit}:
            return ""
        units = " and ".join(sorted(site.units))
        return f"releases, all runs' together, protect each {units}, the plan each {mechanism.unit}"

    return [*_describe_sites(facts, describe), f"So no epsilon is shown for each {mechanism.unit}."]


def _assess_trust(facts: AuditFacts) -> Assessment:
    lines = ["The threat model, and what is not protected, are stated below."]
    if facts.has_whole_node_noise:
        lines.append(
            "By the run's own files, whole nodes are protected by noise of the server, which must be trusted for that."
        )
    return "held", lines


def _assess_mechanism(facts: AuditFacts) -> Assessment:
    mechanism, plan = _get_mechanism(facts), facts.plan
    if mechanism is None or plan is None:
        return "not held", ["The plan has no noise."]
    precision = (facts.result and facts.result.text("precision")) or "that of the run's recipe"
    known_code = "; weights are kept and norms taken in float32, by the code that is installed here and was run"
    return _to_status(all(site.passes("releases") and site.passes("plans") for site in facts.sites)), [
        f"Clipping norm {mechanism.clipping_norm:g}, noise multiplier {mechanism.noise_multiplier:g}, sampling rate "
        f"{mechanism.sampling_rate:.4g}, {mechanism.steps} steps a round, {plan.spec.rounds} rounds.",
        "Units are drawn by Poisson sampling; the loss is a mean over each record's own tokens, never over the batch.",
        f"Precision: {precision}{known_code if plan.code == code_sha256() else ''}.",
        *_describe_sites(facts, lambda site: f"releases: {site.details('releases')}"),
    ]


def _assess_accounting(facts: AuditFacts) -> Assessment:
    if _get_mechanism(facts) is None:
        reason = "nothing left by the plan" if facts.all_noised else describe_no_epsilon(facts)
        return "not held", [f"There is nothing to account for: {reason}."]
    passed = all(site.passes("ledger") and site.passes("epsilon") for site in facts.sites if site.releases)
    return _to_status(passed), [
        f"PRV (Opacus {_get_version('opacus')}) and PLD (dp-accounting {_get_version('dp-accounting')}): the greater "
        "counts.",
        "Recomputed now from the logs' entries, each held to its row of the ledger, over all runs that used the data.",
        *_describe_sites(facts, lambda site: f"{site.details('ledger')}; {_describe_spent(site)}"),
    ]


def _assess_releases(facts: AuditFacts) -> Assessment:
    measured = sum(entry["purpose"] == "metrics" for site in facts.sites for entry in site.sent_releases)
    names = ("ledger", "releases", "releases received")
    passed = all(site.passes(name) for site in facts.sites for name in names if site.releases)
    return _to_status(passed), [
        f"{facts.sent_count} releases of {len(facts.sites)} sites, {facts.sent_bytes:,} bytes; {measured} of them "
        "measures.",
        *describe_charged(facts),
        "The number of units that a site declares is public, and chosen by people.",
        *_describe_sites(facts, lambda site: f"{site.details('ledger')}; {site.details('releases received')}"),
    ]


def _assess_randomness(facts: AuditFacts) -> Assessment:
    plan = facts.plan
    if plan is None:
        return "not held", ["The server's log shows no plan."]
    same_code = plan.code == code_sha256()
    applies = facts.canaries is not None and facts.canaries.matches(plan)
    trials = [t for t in facts.canaries.trials if t.name in _NOISE_TRIALS] if facts.canaries and applies else []
    lines = [
        "Noise and sampling come from the operating system's generator (ChaCha20 keys, fresh for each call); no seed "
        "reaches them. Each value is a sum of four draws, against attacks on floating point.",
        f"The run is of code {plan.code[:16]}, "
        + ("the code that is installed here." if same_code else "not installed here."),
        *(f"Trial of the code, {trial.name}, {trial.outcome}: {trial.detail}." for trial in trials),
    ]
    return _to_status(same_code and all(trial.outcome == "passed" for trial in trials)), lines


def _assess_empirical(facts: AuditFacts) -> Assessment:
    if facts.canaries is None and facts.attack is None:
        return "not held", ["None was made: fedglm audit canaries and fedglm audit attack make one."]
    lines = []
    if (canaries := facts.canaries) is not None:
        lines = [
            f"Canaries ({result.kind}, {result.canaries:,}), in a training of the audit's own: rigorous lower bound "
            f"{result.bound:.2f} (one-run {result.one_run:.2f}, f-DP {result.f_dp:.2f}; {result.confidence:.1%} sure), "
            f"Gaussian estimate {result.estimate:.2f}, of a claim of {result.claimed:.2f} at delta {result.delta:g}."
            for result in canaries.canaries
        ]
        passed = sum(trial.outcome == "passed" for trial in canaries.trials)
        lines.append(f"{passed} of {len(canaries.trials)} trials of the training code passed.")
    if (attack := facts.attack) is not None:
        lines += [f"{sentence}." for sentence in attack.sentences]
        lines.append(
            f"Attacked was one round, with the noise of epsilon {attack.epsilon:g} over a whole run; the round alone "
            f"spends {attack.round_epsilon:.2f}, at delta {attack.delta:g}."
        )
    audits = [audit for audit in (canaries, attack) if audit is not None]
    for audit in audits:
        lines += [f"Left out: {reason}." for reason in audit.left_out]
    if any(audit.records == "stand-in" for audit in audits):
        lines.append("The sites' own records were not used, for they are at the sites: others stood in for them.")
    if not (current := all(audit.matches(facts.plan) for audit in audits)):
        lines.append("One of them was made with other code or another model than the run's: it says nothing about it.")
    return _to_status(current and (canaries is None or canaries.passed)), lines


def _assess_identities(facts: AuditFacts) -> Assessment:
    lines = [f"{site.name} signs with {site.log.keys[-1].fingerprint()}." for site in facts.sites]
    refused = sum(sum(site.refusals.values()) for site in facts.sites)
    declined = sum(entry["kind"] == "declined" for entry in facts.server_entries)
    lines.append(f"{refused} refusals by sites are in their logs; {declined} sites declined the plan.")
    if facts.is_simulation:
        lines.append("Sites and server were one machine: the keys show how it works, not who was there.")
    return _to_status(all(site.passes("key") and site.passes("policy") for site in facts.sites)), lines


def _assess_transport(facts: AuditFacts) -> Assessment:
    links = [(site.name, entry) for site in facts.sites for entry in site.log.rare_entries("link")]
    if facts.is_simulation and not links:
        return "not applicable", ["Sites and server were one machine; nothing went over a network."]
    return _to_status(all(site.is_linked for site in facts.sites)), [
        *dict.fromkeys(
            f"{name}: {link['tls']}, server's certificate {link['certificate'][:16]}." for name, link in links
        ),
        *_describe_sites(
            facts, lambda site: "" if site.is_linked else "the log does not show how the first update left"
        ),
    ]


def _assess_integrity(facts: AuditFacts) -> Assessment:
    verification, plan = facts.verification, facts.plan
    countersigned = all(site.passes("sealed") for site in facts.sites)
    lines = [f"{describe_checks(verification.checks)}."]
    not_passed = [*select_failed(verification.checks), *select_missing(verification.checks)]
    lines += [f"{check.subject}, {check.name}: {check.detail}." for check in not_passed]
    if plan is not None:
        lines.append(f"Plan {plan.sha256[:16]}, code {plan.code[:16]}, starting weights {plan.model[:16]}.")
    lines += [
        f"Light release: {check.detail}." for check in verification.checks if check.name == LIGHT and check.passed
    ]
    lines += _describe_sites(facts, lambda site: site.details("sealed"))
    return _to_status(verification.verdict is Verdict.WHOLE and countersigned), lines


def _assess_storage(facts: AuditFacts) -> Assessment:
    policies = [site.policy for site in facts.sites]
    passed = all(policy and policy.retention_days and policy.state_encrypted for policy in policies)
    return _to_status(passed), [
        *_describe_sites(facts, _describe_retention),
        *_describe_sites(facts, _describe_encryption),
    ]


def _describe_retention(site: SiteFacts) -> str:
    days = site.policy and site.policy.retention_days
    return f"by the policy, records are kept {days} days" if days else "the policy sets no period to keep records"


def _describe_encryption(site: SiteFacts) -> str:
    is_required = site.policy and site.policy.state_encrypted
    return f"the policy {'asks' if is_required else 'does not ask'} for node state that is encrypted at rest"


def _assess_utility(facts: AuditFacts) -> Assessment:
    result = facts.result
    if result is None or result.final.metric is None:
        return "not held", ["The run's files show no result on held-out data."]
    others = {"One model on all data pooled": result.pooled, "A site alone, on average": result.alone}
    scores = {"This run": result.final, **{f"{words}, without noise": score for words, score in others.items()}}
    return _to_status(any(others.values())), [
        f"{words}: loss {format_number(score.loss)}, {result.metric} {format_metric(result.metric, score.metric)}."
        for words, score in scores.items()
        if score is not None
    ]


def _get_mechanism(facts: AuditFacts) -> Mechanism | None:
    return None if facts.plan is None else facts.plan.spec.noise.mechanism


def _get_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


_ITEMS: Final[list[tuple[str, Callable[[AuditFacts], Assessment]]]] = [
    ("Guarantee: epsilon, delta, units, by round", _assess_guarantee),
    ("Unit of privacy and neighbours", _assess_unit),
    ("Who is trusted, and what is not protected", _assess_trust),
    ("Mechanism as it was applied", _assess_mechanism),
    ("Accounting, checked twice, over every run", _assess_accounting),
    ("All that was released", _assess_releases),
    ("Randomness and floating point", _assess_randomness),
    ("Empirical audits", _assess_empirical),
    ("Identities, approvals, refusals", _assess_identities),
    ("Transport", _assess_transport),
    ("Integrity of model, code, policy and records", _assess_integrity),
    ("Encryption at rest and retention", _assess_storage),
    ("Utility, with and without privacy", _assess_utility),
]
