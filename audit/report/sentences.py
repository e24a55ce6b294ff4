"""The sentences of an audit report: its headline, its summary, the threat model, and what is not protected."""

import math
from typing import Final

from fedglm.audit.report.facts import AuditFacts
from fedglm.reports.formats import format_bytes, format_number, pluralize

_WEAK_EPSILON: Final = 10.0
"""An epsilon above it promises little by itself (Ponomareva et al., How to DP-fy ML, arXiv 2303.00654, section 5.2)."""

THREATS: Final = (
    (
        "The server, honest or curious",
        "every update of every site, and what sites say of themselves",
        "with noise: each unit at the site's epsilon; without: nothing",
    ),
    ("Other sites", "the models", "with noise: each unit at the site's epsilon"),
    ("Outsiders with the model", "the models that are passed on", "with noise: each unit at the site's epsilon"),
    ("Somebody on the line", "encrypted messages, their sizes and times", "TLS; updates are signed by the site"),
    (
        "A server that lies",
        "as above; it may ask for anything",
        "the site's policy decides: what it does not permit is refused and logged",
    ),
    (
        "A site that rewrites its records",
        "its own log and ledger",
        "the server's countersignatures and its own log show the difference",
    ),
    (
        "Who has the site's disk",
        "records, state, log; keys where they have no passphrase",
        "the site's own safeguards; the node's state is encrypted where the policy asks for it",
    ),
)
"""For each adversary: who, what they see, and what protects against them."""

NOT_PROTECTED: Final = (
    "That a site takes part, how many units it declares, how long its rounds take, and how many bytes it sends.",
    "What many records have in common: it is what is learned. A unit is protected, not a site's statistics.",
    "A person with data at several sites, or in several data sets of one: their epsilons add up.",
    "Records against the site's own staff and software, which are trusted.",
    "Sites that collude with somebody inside another site: only noise stands against that.",
    "Accuracy: a server can spoil the model, and a few sites can poison it.",
)
"""What the guarantee does not cover."""


def write_headline(facts: AuditFacts) -> str:
    """Write the report in one sentence."""
    sites, releases = pluralize(len(facts.sites), "site"), pluralize(facts.sent_count, "release")
    if not facts.sites:
        return "The server's records alone: what left the sites, their own logs show"
    if not facts.verification.passed:
        return f"The records are not whole: what they say of {releases} of {sites} cannot be relied on"
    if not facts.is_whole:
        return f"{releases} of {sites}, and other records are missing"
    if facts.nothing_left:
        return f"Nothing left {sites}, by their own logs"
    max_epsilon = _compute_max_epsilon(facts)
    if max_epsilon is None:
        return f"{releases} of {sites}, some of them without noise: {describe_no_epsilon(facts)}"
    if len(facts.units) > 1:
        return f"{releases} of {sites}, which protect several units ({' and '.join(facts.units)}): no one epsilon holds"
    return f"{releases} of {sites}, at epsilon {max_epsilon:.2f} or less for each unit"


def describe_no_epsilon(facts: AuditFacts) -> str:
    """Describe for whom no epsilon holds, where updates had no noise of the sites."""
    return f"no epsilon holds{' for single records' if facts.has_whole_node_noise else ''}"


def _compute_max_epsilon(facts: AuditFacts) -> float | None:
    """Return the epsilon of the data set that spent most; None if one has none that holds."""
    epsilons = [site.epsilon for site in facts.sites]
    return None if None in epsilons else max((epsilon for epsilon in epsilons if epsilon is not None), default=0.0)


def _compute_max_delta(facts: AuditFacts) -> float:
    """Return the largest delta of all data sets: the largest epsilon may hold at a smaller one."""
    deltas = [budget.delta for site in facts.sites for budget in site.budgets or []]
    return max((delta for delta in deltas if delta is not None), default=0.0)


def write_summary(facts: AuditFacts) -> list[str]:
    """Write what left, under which guarantee, who allowed it, and whether the record can be trusted."""
    refused = sum(sum(site.refusals.values()) for site in facts.sites)
    all_permitted = bool(facts.sites) and all(site.passes("releases") and site.passes("policy") for site in facts.sites)
    compliance = "every release keeps to it" if all_permitted else "not every release is shown to keep to it"
    allowed = f"Who allowed it: each site's own signed policy; {compliance}; requests refused: {refused:,}."
    verification = facts.verification
    countersigned = facts.is_whole and all(site.passes("sealed") for site in facts.sites)
    trust = "The record: something in it was changed, or contradicts something else. See below."
    if verification.passed and facts.sites:
        seals = "countersigned by the other side" if countersigned else "not countersigned, or not all here"
        trust = f"The record: signed, {seals}; nothing in it is wrong."
    elif verification.passed:
        trust = "The record: signed by the server; nothing in it is wrong."
    return [f"What left: {_describe_releases(facts)}", f"The guarantee: {_describe_guarantee(facts)}", allowed, trust]


def _describe_releases(facts: AuditFacts) -> str:
    if not facts.sites:
        return "not known. No site's log is here."
    if facts.nothing_left:
        return "nothing, by the sites' logs that are here."
    sent = f"{pluralize(facts.sent_count, 'release')} of model updates and measures, {format_bytes(facts.sent_bytes)}."
    return " ".join([sent, *describe_charged(facts)])


def describe_charged(facts: AuditFacts) -> list[str]:
    """Describe what nodes charged for before they were killed; empty if there is none."""
    if not facts.unsent_count:
        return []
    more = pluralize(facts.unsent_count, "more was", "more were")
    return [f"{more} charged for by nodes that were killed, and may never have left."]


def _describe_guarantee(facts: AuditFacts) -> str:
    """Describe the guarantee of the records, if they are complete: a plan alone is an intention."""
    plan, max_epsilon = facts.plan, _compute_max_epsilon(facts)
    if not facts.is_whole:
        return "not shown. The records are not whole, or not all here."
    if facts.nothing_left:
        return "none is needed. Nothing left the sites."
    if plan is None:
        return "unknown. No plan can be read."
    if plan.spec.noise.mechanism is None and facts.all_noised:
        return "none by the plan, which has no noise. What left is of other runs, and had noise."
    if plan.spec.noise.mechanism is None or max_epsilon is None:
        if facts.has_whole_node_noise:
            return (
                "none for single records. Updates had no noise, and can reveal to the server the records behind them. "
                "Of whole nodes, see item 3."
            )
        return "none. Updates had no noise, and can reveal records behind them."
    unit, delta = plan.spec.noise.mechanism.unit, _compute_max_delta(facts)
    if others := [name for name in facts.units if name != unit]:
        other = " or ".join(others)
        return f"not shown for each {unit}. Some releases, of earlier runs maybe, had noise for each {other} instead."
    guarantee = f"differential privacy for each {unit}, at epsilon {max_epsilon:.2f} or less, delta {delta:g}."
    if max_epsilon > _WEAK_EPSILON:
        return f"{guarantee} So high an epsilon promises little about one {unit}."
    return (
        f"{guarantee} Whatever is learned from the updates, the odds of a guess about one {unit} are at most "
        f"{format_number(math.exp(max_epsilon), 2)} times what they would be without it, but for a chance of about "
        "delta."
    )
