"""What an audit report says in plain words: its headline, its summary, the threat model, and what is not protected."""

import math
from typing import Final

from fedglm.audit.report.facts import AuditFacts
from fedglm.reports.formats import byte_count, counted, significant

_LITTLE: Final = 10.0
"""Above it, an epsilon says little by itself (Ponomareva et al., How to DP-fy ML, arXiv 2303.00654, section 5.2)."""

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
"""Who, what they see, and what holds against them."""

NOT_PROTECTED: Final = (
    "That a site takes part, how many units it declares, how long its rounds take, and how many bytes it sends.",
    "What many records have in common: it is what is learned. A unit is protected, not a site's statistics.",
    "A person with data at several sites, or in several data sets of one: their epsilons add up.",
    "Records against the site's own staff and software, which are trusted.",
    "Sites that collude with somebody inside another site: only noise stands against that.",
    "Accuracy: a server can spoil the model, and a few sites can poison it.",
)
"""What the guarantee does not cover."""


def headline(facts: AuditFacts) -> str:
    """The report in one sentence."""
    sites, releases = counted(len(facts.sites), "site"), counted(facts.left, "release")
    if not facts.sites:
        return "The server's records alone: what left the sites, their own logs show"
    if not facts.verification.held:
        return f"The records are not whole: what they say of {releases} of {sites} cannot be relied on"
    if not facts.is_whole:
        return f"{releases} of {sites}, and other records are missing"
    if facts.nothing_left:
        return f"Nothing left {sites}, by their own logs"
    greatest = _greatest(facts)
    if greatest is None:
        return f"{releases} of {sites}, some of them without noise: {no_epsilon(facts)}"
    if len(facts.units) > 1:
        return f"{releases} of {sites}, which protect several units ({' and '.join(facts.units)}): no one epsilon holds"
    return f"{releases} of {sites}, at epsilon {greatest:.2f} or less for each unit"


def no_epsilon(facts: AuditFacts) -> str:
    """For whom none holds, where updates had no noise of the sites."""
    return f"no epsilon holds{' for single records' if facts.has_whole_nodes else ''}"


def _greatest(facts: AuditFacts) -> float | None:
    """Epsilon of the data set that spent most; None where one has none that holds."""
    epsilons = [site.epsilon for site in facts.sites]
    return None if None in epsilons else max((epsilon for epsilon in epsilons if epsilon is not None), default=0.0)


def _greatest_delta(facts: AuditFacts) -> float:
    """Of all data sets, for the greatest epsilon may be told at a lesser one."""
    deltas = [promise.delta for site in facts.sites for promise in site.promises or []]
    return max((delta for delta in deltas if delta is not None), default=0.0)


def summary_sentences(facts: AuditFacts) -> list[str]:
    """What left, under which guarantee, who allowed it, and whether the record can be trusted."""
    refused = sum(sum(site.refusals.values()) for site in facts.sites)
    kept = bool(facts.sites) and all(site.holds("releases") and site.holds("policy") for site in facts.sites)
    held = "every release keeps to it" if kept else "not every release is shown to keep to it"
    allowed = f"Who allowed it: each site's own signed policy; {held}; requests refused: {refused:,}."
    found = facts.verification
    sealed = facts.is_whole and all(site.holds("sealed") for site in facts.sites)
    trust = "The record: something in it was changed, or contradicts something else. See below."
    if found.held and facts.sites:
        seals = "countersigned by the other side" if sealed else "not countersigned, or not all here"
        trust = f"The record: signed, {seals}; nothing in it is wrong."
    elif found.held:
        trust = "The record: signed by the server; nothing in it is wrong."
    return [f"What left: {_left(facts)}", f"The guarantee: {_guarantee(facts)}", allowed, trust]


def _left(facts: AuditFacts) -> str:
    if not facts.sites:
        return "not known. No site's log is here."
    if facts.nothing_left:
        return "nothing, by the sites' logs that are here."
    left = f"{counted(facts.left, 'release')} of model updates and measures, {byte_count(facts.bytes)}."
    return " ".join([left, *charged_sentences(facts)])


def charged_sentences(facts: AuditFacts) -> list[str]:
    """What nodes charged for that were killed, where there is any."""
    if not facts.charged:
        return []
    more = counted(facts.charged, "more was", "more were")
    return [f"{more} charged for by nodes that were killed, and may never have left."]


def _guarantee(facts: AuditFacts) -> str:
    """Of the records, and only where they are whole: a plan alone is an intention."""
    plan, greatest = facts.plan, _greatest(facts)
    if not facts.is_whole:
        return "not shown. The records are not whole, or not all here."
    if facts.nothing_left:
        return "none is needed. Nothing left the sites."
    if plan is None:
        return "unknown. No plan can be read."
    if plan.spec.noise.mechanism is None and facts.all_noised:
        return "none by the plan, which has no noise. What left is of other runs, and had noise."
    if plan.spec.noise.mechanism is None or greatest is None:
        if facts.has_whole_nodes:
            return (
                "none for single records. Updates had no noise, and can reveal to the server the records behind them. "
                "Of whole nodes, see item 3."
            )
        return "none. Updates had no noise, and can reveal records behind them."
    unit, delta = plan.spec.noise.mechanism.unit, _greatest_delta(facts)
    if odd := [name for name in facts.units if name != unit]:
        other = " or ".join(odd)
        return f"not shown for each {unit}. Some releases, of earlier runs maybe, had noise for each {other} instead."
    promise = f"differential privacy for each {unit}, at epsilon {greatest:.2f} or less, delta {delta:g}."
    if greatest > _LITTLE:
        return f"{promise} So high an epsilon promises little about one {unit}."
    return (
        f"{promise} Whatever is learned from the updates, the odds of a guess about one {unit} are at most "
        f"{significant(math.exp(greatest), 2)} times what they would be without it, but for a chance of about delta."
    )
