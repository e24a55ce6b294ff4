"""The rules by which a policy refuses: one function a rule, in tables that a person can read.

Every permission of a `Policy` has one rule here, named like it. Two more places refuse in a rule's name: the ledger
(`epsilon-budget`, with what was spent before) and `SignedPlan` (`plan-size`, `plan-signature`, `plan-form`: a plan that
is none).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from fedglm.privacy.accounting.accountant import compute_epsilon, is_within_budget
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import Refusal
from fedglm.privacy.policy.policy import ANY, Policy
from fedglm.privacy.policy.run_plan import SignedPlan

_ALWAYS = ("servers", "plans", "models", "codecs", "steps_at_most", "bytes_at_most")
_WITH_NOISE = (
    *("epsilon", "delta", "declare_units", "unit", "records_per_unit_at_most"),
    *("noise_multiplier_at_least", "clipping_norm_at_most"),
)

_Subject = TypeVar("_Subject")
_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class OutboundMessage:
    """What is about to leave the node, as far as the policy asks.

    Attributes:
        size: Bytes of the whole message.
        metrics: Names of the metrics in it, of `loss`, `metric`, `count`.
    """

    size: int
    metrics: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Rule(Generic[_Subject]):
    """One thing that a policy can refuse.

    Attributes:
        name: What a refusal is logged and answered under.
        key: The policy's key that permits.
        meaning: One sentence for a person.
        broken: Of a subject and a policy, why the rule is broken; None where it is kept.
    """

    name: str
    key: str
    meaning: str
    broken: Callable[[_Subject, Policy], str | None]


def check_plan(signed: SignedPlan, policy: Policy) -> None:
    """Hold a run plan to the policy, before anything is computed for it.

    Raises:
        Refusal: With the name of the first rule in `PLAN_RULES` that is broken.
    """
    _refuse(PLAN_RULES, signed, policy)


def check_message(message: OutboundMessage, policy: Policy) -> None:
    """Hold a message to the policy: before the ledger is charged for it, so that a refusal costs no budget.

    Raises:
        Refusal: With the name of the first rule in `MESSAGE_RULES` that is broken.
    """
    _refuse(MESSAGE_RULES, message, policy)


def check_plain_update(layout: str, codec: str, policy: Policy) -> None:
    """Hold an update of a run without a plan, which nobody can say has noise, to the policy.

    Raises:
        Refusal: With the name of the rule that is broken.
    """
    check_without_noise(policy)
    broken = {
        "models": _unlisted("the layout", [layout], policy.models, "models"),
        "codecs": _unlisted("the codec", [codec], policy.codecs, "codecs"),
    }
    for name, reason in broken.items():
        if reason is not None:
            raise Refusal(name, reason)


def check_without_noise(policy: Policy) -> None:
    """Hold something of which nobody can say that it has noise to the policy.

    Raises:
        Refusal: Rule `without-differential-privacy`.
    """
    if not policy.without_differential_privacy:
        reason = "nothing says that it has noise, and without_differential_privacy is not true"
        raise Refusal("without-differential-privacy", reason)


def broken_rules(
    rules: Sequence[Rule[_Subject]], subject: _Subject, policy: Policy
) -> Iterator[tuple[Rule[_Subject], str]]:
    """Every rule that `subject` breaks, with the reason."""
    for rule in rules:
        reason = rule.broken(subject, policy)
        if reason is not None:
            yield rule, reason


def _refuse(rules: Sequence[Rule[_Subject]], subject: _Subject, policy: Policy) -> None:
    for rule, reason in broken_rules(rules, subject, policy):
        raise Refusal(rule.name, reason)


def _unlisted(what: str, found: Sequence[str], allowed: tuple[str, ...], key: str) -> str | None:
    if allowed == (ANY,) or set(found) & set(allowed):
        return None
    return f"{what} {' or '.join(found)} is not listed in {key}" if allowed else f"the policy lists no {key}"


def _over(what: str, value: _Number, limit: _Number | None, key: str) -> str | None:
    if limit is None:
        return f"the policy gives no {key}"
    return f"{what} {_number(value)}, and {key} is {_number(limit)}" if not value <= limit else None


def _number(value: int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _servers(signed: SignedPlan, policy: Policy) -> str | None:
    return _unlisted("the server key", [signed.server.hex], policy.servers, "servers")


def _plans(signed: SignedPlan, policy: Policy) -> str | None:
    plan = signed.plan
    if policy.plans and set(policy.plans) & {ANY, plan.sha256, plan.terms_sha256}:
        return None
    listed = "is not listed in plans" if policy.plans else "is not listed: the policy lists no plans"
    return f"the run plan, whose terms have the SHA-256 {plan.terms_sha256}, {listed}"


def _models(signed: SignedPlan, policy: Policy) -> str | None:
    return _unlisted("the model", [signed.plan.model, signed.plan.layout], policy.models, "models")


def _codecs(signed: SignedPlan, policy: Policy) -> str | None:
    return _unlisted("the codec", [signed.plan.spec.codec], policy.codecs, "codecs")


def _steps(signed: SignedPlan, policy: Policy) -> str | None:
    return _over("steps a round:", signed.plan.spec.local_steps, policy.steps_at_most, "steps_at_most")


def _without_noise(signed: SignedPlan, policy: Policy) -> str | None:
    if signed.plan.spec.noise.mechanism is not None or policy.without_differential_privacy:
        return None
    return "the run plan adds no noise, and without_differential_privacy is not true"


def _added(signed: SignedPlan) -> list[Mechanism]:
    """The noise of a round: on the update, and on measures where there are any."""
    return list(signed.plan.spec.noise.mechanisms)


def _with_noise(broken: Callable[[Mechanism, Policy], str | None]) -> Callable[[SignedPlan, Policy], str | None]:
    """A rule of the mechanism; a plan without one is for the rule `without-differential-privacy`."""

    def of_plan(signed: SignedPlan, policy: Policy) -> str | None:
        return None if signed.plan.spec.noise.mechanism is None else broken(signed.plan.spec.noise.mechanism, policy)

    return of_plan


@_with_noise
def _unit(mechanism: Mechanism, policy: Policy) -> str | None:
    if policy.unit is None:
        return "the policy gives no unit"
    return None if mechanism.unit == policy.unit else f"the plan protects {mechanism.unit}, and unit is {policy.unit}"


@_with_noise
def _records_per_unit(mechanism: Mechanism, policy: Policy) -> str | None:
    limit = policy.records_per_unit_at_most
    return _over("records of a unit:", mechanism.records_per_unit, limit, "records_per_unit_at_most")


def _noise_multiplier(signed: SignedPlan, policy: Policy) -> str | None:
    added, least = _added(signed), policy.noise_multiplier_at_least
    if not added:
        return None
    if least is None:
        return "the policy gives no noise_multiplier_at_least"
    noise = min(mechanism.noise_multiplier for mechanism in added)
    if noise >= least:
        return None
    return f"noise multiplier {_number(noise)}, and noise_multiplier_at_least is {_number(least)}"


@_with_noise
def _clipping_norm(mechanism: Mechanism, policy: Policy) -> str | None:
    return _over("clipping norm", mechanism.clipping_norm, policy.clipping_norm_at_most, "clipping_norm_at_most")


@_with_noise
def _declare_units(_: Mechanism, policy: Policy) -> str | None:
    return (
        "the policy gives no declare_units, by which noised sums are divided" if policy.declare_units is None else None
    )


@_with_noise
def _delta(_: Mechanism, policy: Policy) -> str | None:
    return "the policy gives no delta" if policy.delta is None else None


def _epsilon_budget(signed: SignedPlan, policy: Policy) -> str | None:
    round_alone = [mechanism.event() for mechanism in _added(signed)]
    if not round_alone:
        return None
    if policy.epsilon is None:
        return "the policy gives no epsilon"
    if policy.delta is None or is_within_budget(round_alone, policy.epsilon, policy.delta):  # no delta: the rule before
        return None
    epsilon = compute_epsilon(round_alone, policy.delta).epsilon
    return f"one round alone spends epsilon {_number(epsilon)}, and epsilon is {_number(policy.epsilon)}"


def _bytes(message: OutboundMessage, policy: Policy) -> str | None:
    return _over("bytes of the message:", message.size, policy.bytes_at_most, "bytes_at_most")


def _metrics(message: OutboundMessage, policy: Policy) -> str | None:
    kept = sorted(message.metrics - set(policy.metrics))
    return f"the message reports {', '.join(kept)}, not listed in metrics" if kept else None


PLAN_RULES: tuple[Rule[SignedPlan], ...] = (
    Rule("servers", "servers", "Only a listed server's signature makes a run plan count.", _servers),
    Rule("plans", "plans", "Only run plans whose terms the site has agreed to are run.", _plans),
    Rule(
        "models",
        "models",
        "Runs start from listed weights, or from any weights in a listed layout; later ones are the server's.",
        _models,
    ),
    Rule("codecs", "codecs", "Updates are written in listed codecs only.", _codecs),
    Rule("steps", "steps_at_most", "A round trains for at most so many steps.", _steps),
    Rule(
        "without-differential-privacy",
        "without_differential_privacy",
        "A run that adds no noise is refused unless the site permits that in so many words.",
        _without_noise,
    ),
    Rule("unit", "unit", "A run protects the unit that the site names, and no smaller one.", _unit),
    Rule(
        "records-per-unit",
        "records_per_unit_at_most",
        "A step looks at no more than so many records of one unit.",
        _records_per_unit,
    ),
    Rule("noise-multiplier", "noise_multiplier_at_least", "Noise is never less than this.", _noise_multiplier),
    Rule("clipping-norm", "clipping_norm_at_most", "No unit moves a step by more than this.", _clipping_norm),
    Rule(
        "declare-units",
        "declare_units",
        "Sums with noise are divided by a public number of units, which the site must have declared.",
        _declare_units,
    ),
    Rule("delta", "delta", "There is a privacy budget only where the site gives its delta.", _delta),
    Rule(
        "epsilon-budget",
        "epsilon",
        "All releases from the data set together stay within epsilon; no single round may exceed it either.",
        _epsilon_budget,
    ),
)
"""Held against a run plan, in this order; the costly one is last."""

MESSAGE_RULES: tuple[Rule[OutboundMessage], ...] = (
    Rule("bytes", "bytes_at_most", "A message has at most so many bytes.", _bytes),
    Rule("metrics", "metrics", "Only listed metrics leave the site.", _metrics),
)
"""Held against every message before it leaves."""


def missing_keys(policy: Policy) -> list[str]:
    """Keys without which every run is refused."""
    needed = _ALWAYS if policy.without_differential_privacy else _ALWAYS + _WITH_NOISE
    return [name for name in needed if getattr(policy, name) in (None, ())]
