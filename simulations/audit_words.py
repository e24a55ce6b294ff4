"""What an audit report says in plain words: its headline, its summary, the threat model, and what is not protected."""

from typing import Final

from fedglm.simulations.audit_facts import AuditFacts
from fedglm.simulations.wording import byte_count, counted

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
    "A person with data at several sites: the sites' epsilons add up.",
    "Records against the site's own staff and software, which are trusted.",
    "Sites that collude with somebody inside another site: only noise stands against that.",
    "Accuracy: a server can spoil the model, and a few sites can poison it.",
)
"""What the guarantee does not cover."""


def headline(facts: AuditFacts) -> str:
    """The report in one sentence."""
    sites, epsilons = counted(len(facts.sites), "site"), [site.epsilon for site in facts.sites]
    if not facts.sites:
        return "The server's records alone: what left the sites, their own logs show"
    if None in epsilons:
        return f"{counted(facts.releases, 'release')} of {sites} left without noise: no epsilon holds"
    greatest = max(epsilon for epsilon in epsilons if epsilon is not None)
    return f"{counted(facts.releases, 'release')} of {sites}, at epsilon {greatest:.2f} or less for each unit"


def summary_sentences(facts: AuditFacts) -> list[str]:
    """What left, under which guarantee, who allowed it, and whether the record can be trusted."""
    size = sum(entry.get("bytes", 0) for site in facts.sites for entry in site.releases)
    refused = sum(sum(site.refusals.values()) for site in facts.sites)
    plan = facts.plan
    left = f"What left: {counted(facts.releases, 'coded message')} of model updates and measures, {byte_count(size)}."
    if plan is None:
        promise = "The guarantee: unknown. No plan can be read."
    elif plan.mechanism is None:
        promise = "The guarantee: none. The updates had no noise, and can reveal records behind them."
    else:
        limits = {site.policy.epsilon for site in facts.sites if site.policy and site.policy.epsilon}
        most = f"; the policies permit {max(limits):g}" if limits else ""
        promise = (
            f"The guarantee: differential privacy for each {plan.mechanism.unit}, epsilon as told for each site"
            f"{most}. Whoever sees the updates learns little more about one {plan.mechanism.unit} than without it."
        )
    allowed = (
        f"Who allowed it: each site's own signed policy, which the node held every message to; {refused} were refused."
    )
    found = facts.verification
    sealed = all(site.holds("countersignature") for site in facts.sites) and not facts.missing
    trust = "The record: something in it was changed, or contradicts something else. See below."
    if found.held and facts.sites:
        seals = "countersigned by the other side" if sealed else "not countersigned, or not all here"
        trust = f"The record: signed, {seals}; nothing in it is wrong."
    elif found.held:
        trust = "The record: signed by the server; nothing in it is wrong."
    return [left, promise, allowed, trust]
