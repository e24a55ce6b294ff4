"""The rules by which a policy refuses: one function per rule, in tables that a person can read.

Every permission of a `Policy` has one rule here, named like it. Two other places refuse by a rule: the ledger
(`epsilon-budget`, with what was spent before) and `SignedPlan` (`plan-size`, `plan-signature`, `plan-form`: malformed
plans).
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
    """The properties of a message from the node that the policy restricts.

    Attributes:
        size: Size of the entire message in bytes.
        metrics: Names of its metrics, of `loss`, `metric`, `count`.
        validation: Whether it tells how a light release works on the site's machine.
    """

    size: int
    metrics: frozenset[str] = frozenset()
    validation: bool = False


@dataclass(frozen=True)
class Rule(Generic[_Subject]):
    """A rule of a policy.

    Attributes:
        name: Name of the rule in logs and replies.
        key: Key of the policy that permits.
        meaning: Meaning of the rule in one sentence.
        check: Checks a subject against a policy: returns the reason why the rule is broken, None where it is not.
    """

    name: str
    key: str
    meaning: str
    check: Callable[[_Subject, Policy], str | None]


def check_plan(signed: SignedPlan, policy: Policy) -> None:
    """Check a run plan against the policy, before anything is computed for it.

    Raises:
        Refusal: The first rule in `PLAN_RULES` that is broken.
    """
    _refuse(PLAN_RULES, signed, policy)


def check_message(message: OutboundMessage, policy: Policy) -> None:
    """Check a message against the policy, before the ledger is charged for it, so that a refusal costs no budget.

    Raises:
        Refusal: The first rule in `MESSAGE_RULES` that is broken.
    """
    _refuse(MESSAGE_RULES, message, policy)


def check_plain_update(layout: str, codec: str, policy: Policy) -> None:
    """Check an update of a run without a plan, for which no noise is proved, against the policy.

    Raises:
        Refusal: The first rule that is broken.
    """
    check_without_noise(policy)
    broken = {
        "models": _explain_unlisted("the layout", [layout], policy.models, "models"),
        "codecs": _explain_unlisted("the codec", [codec], policy.codecs, "codecs"),
    }
    for name, reason in broken.items():
        if reason is not None:
            raise Refusal(name, reason)


def check_without_noise(policy: Policy) -> None:
    """Check a release for which no noise is proved against the policy.

    Raises:
        Refusal: Rule `without-differential-privacy`.
    """
    if not policy.without_differential_privacy:
        reason = "nothing says that it has noise, and without_differential_privacy is not true"
        raise Refusal("without-differential-privacy", reason)


def find_broken_rules(
    rules: Sequence[Rule[_Subject]], subject: _Subject, policy: Policy
) -> Iterator[tuple[Rule[_Subject], str]]:
    """Yield every rule that `subject` breaks, with the reason."""
    for rule in rules:
        reason = rule.check(subject, policy)
        if reason is not None:
            yield rule, reason


def _refuse(rules: Sequence[Rule[_Subject]], subject: _Subject, policy: Policy) -> None:
    for rule, reason in find_broken_rules(rules, subject, policy):
        raise Refusal(rule.name, reason)


def _explain_unlisted(what: str, names: Sequence[str], allowed: tuple[str, ...], key: str) -> str | None:
    if allowed == (ANY,) or set(names) & set(allowed):
        return None
    return f"{what} {' or '.join(names)} is not listed in {key}" if allowed else f"the policy lists no {key}"


def _explain_excess(what: str, value: _Number, limit: _Number | None, key: str) -> str | None:
    if limit is None:
        return f"the policy gives no {key}"
    return f"{what} {_format_number(value)}, and {key} is {_format_number(limit)}" if not value <= limit else None


def _format_number(value: int | float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _check_servers(signed: SignedPlan, policy: Policy) -> str | None:
    return _explain_unlisted("the server key", [signed.server.hex], policy.servers, "servers")


def _check_plans(signed: SignedPlan, policy: Policy) -> str | None:
    plan = signed.plan
    if policy.plans and set(policy.plans) & {ANY, plan.sha256, plan.terms_sha256}:
        return None
    listed = "is not listed in plans" if policy.plans else "is not listed: the policy lists no plans"
    return f"the run plan, whose terms have the SHA-256 {plan.terms_sha256}, {listed}"


def _check_models(signed: SignedPlan, policy: Policy) -> str | None:
    return _explain_unlisted("the model", [signed.plan.model, signed.plan.layout], policy.models, "models")


def _check_codecs(signed: SignedPlan, policy: Policy) -> str | None:
    return _explain_unlisted("the codec", [signed.plan.spec.codec], policy.codecs, "codecs")


def _check_steps(signed: SignedPlan, policy: Policy) -> str | None:
    return _explain_excess("steps a round:", signed.plan.spec.local_steps, policy.steps_at_most, "steps_at_most")


def _check_noise_added(signed: SignedPlan, policy: Policy) -> str | None:
    if signed.plan.spec.noise.mechanism is not None or policy.without_differential_privacy:
        return None
    return "the run plan adds no noise, and without_differential_privacy is not true"


def _list_mechanisms(signed: SignedPlan) -> list[Mechanism]:
    """List the mechanisms of a round: of the update, and of metrics where there are any."""
    return list(signed.plan.spec.noise.mechanisms)


def _for_mechanism(check: Callable[[Mechanism, Policy], str | None]) -> Callable[[SignedPlan, Policy], str | None]:
    """Make a check of plans from one of mechanisms; plans without one are for `without-differential-privacy`."""

    def check_signed_plan(signed: SignedPlan, policy: Policy) -> str | None:
        return None if signed.plan.spec.noise.mechanism is None else check(signed.plan.spec.noise.mechanism, policy)

    return check_signed_plan


@_for_mechanism
def _check_unit(mechanism: Mechanism, policy: Policy) -> str | None:
    if policy.unit is None:
        return "the policy gives no unit"
    return None if mechanism.unit == policy.unit else f"the plan protects {mechanism.unit}, and unit is {policy.unit}"


@_for_mechanism
def _check_records_per_unit(mechanism: Mechanism, policy: Policy) -> str | None:
    limit = policy.records_per_unit_at_most
    return _explain_excess("records of a unit:", mechanism.records_per_unit, limit, "records_per_unit_at_most")


def _check_noise_multiplier(signed: SignedPlan, policy: Policy) -> str | None:
    mechanisms, min_noise = _list_mechanisms(signed), policy.noise_multiplier_at_least
    if not mechanisms:
        return None
    if min_noise is None:
        return "the policy gives no noise_multiplier_at_least"
    noise = min(mechanism.noise_multiplier for mechanism in mechanisms)
    if noise >= min_noise:
        return None
    return f"noise multiplier {_format_number(noise)}, and noise_multiplier_at_least is {_format_number(min_noise)}"


@_for_mechanism
def _check_clipping_norm(mechanism: Mechanism, policy: Policy) -> str | None:
    return _explain_excess(
        "clipping norm", mechanism.clipping_norm, policy.clipping_norm_at_most, "clipping_norm_at_most"
    )


@_for_mechanism
def _check_declared_units(_: Mechanism, policy: Policy) -> str | None:
    return (
        "the policy gives no declare_units, by which noised sums are divided" if policy.declare_units is None else None
    )


@_for_mechanism
def _check_delta(_: Mechanism, policy: Policy) -> str | None:
    return "the policy gives no delta" if policy.delta is None else None


def _check_epsilon_budget(signed: SignedPlan, policy: Policy) -> str | None:
    round_alone = [mechanism.event() for mechanism in _list_mechanisms(signed)]
    if not round_alone:
        return None
    if policy.epsilon is None:
        return "the policy gives no epsilon"
    # A missing delta breaks the rule before.
    if policy.delta is None or is_within_budget(round_alone, policy.epsilon, policy.delta):
        return None
    epsilon = compute_epsilon(round_alone, policy.delta).epsilon
    return f"one round alone spends epsilon {_format_number(epsilon)}, and epsilon is {_format_number(policy.epsilon)}"


def _check_bytes(message: OutboundMessage, policy: Policy) -> str | None:
    return _explain_excess("bytes of the message:", message.size, policy.bytes_at_most, "bytes_at_most")


def _check_validation(message: OutboundMessage, policy: Policy) -> str | None:
    if not message.validation or policy.light_validation:
        return None
    return "it tells how a light release works here, and light_validation is not true"


def _check_metrics(message: OutboundMessage, policy: Policy) -> str | None:
    kept = sorted(message.metrics - set(policy.metrics))
    return f"the message reports {', '.join(kept)}, not listed in metrics" if kept else None


PLAN_RULES: tuple[Rule[SignedPlan], ...] = (
    Rule("servers", "servers", "Only a listed server's signature makes a run plan count.", _check_servers),
    Rule("plans", "plans", "Only run plans whose terms the site has agreed to are run.", _check_plans),
    Rule(
        "models",
        "models",
        "Runs start from listed weights, or from any weights in a listed layout; later ones are the server's.",
        _check_models,
    ),
    Rule("codecs", "codecs", "Updates are written in listed codecs only.", _check_codecs),
    Rule("steps", "steps_at_most", "A round trains for at most so many steps.", _check_steps),
    Rule(
        "without-differential-privacy",
        "without_differential_privacy",
        "A run that adds no noise is refused unless the site permits that in so many words.",
        _check_noise_added,
    ),
    Rule("unit", "unit", "A run protects the unit that the site names, and no smaller one.", _check_unit),
    Rule(
        "records-per-unit",
        "records_per_unit_at_most",
        "A step looks at no more than so many records of one unit.",
        _check_records_per_unit,
    ),
    Rule("noise-multiplier", "noise_multiplier_at_least", "Noise is never less than this.", _check_noise_multiplier),
    Rule("clipping-norm", "clipping_norm_at_most", "No unit moves a step by more than this.", _check_clipping_norm),
    Rule(
        "declare-units",
        "declare_units",
        "Sums with noise are divided by a public number of units, which the site must have declared.",
        _check_declared_units,
    ),
    Rule("delta", "delta", "There is a privacy budget only where the site gives its delta.", _check_delta),
    Rule(
        "epsilon-budget",
        "epsilon",
        "All releases from the data set together stay within epsilon; no single round may exceed it either.",
        _check_epsilon_budget,
    ),
)
"""Rules of a run plan, checked in this order; the expensive one is last."""

MESSAGE_RULES: tuple[Rule[OutboundMessage], ...] = (
    Rule("bytes", "bytes_at_most", "A message has at most so many bytes.", _check_bytes),
    Rule("metrics", "metrics", "Only listed metrics leave the site.", _check_metrics),
    Rule(
        "light-validation",
        "light_validation",
        "How a light release works on the site's machine leaves only where the site permits.",
        _check_validation,
    ),
)
"""Rules of every message, checked before it leaves."""


def find_missing_keys(policy: Policy) -> list[str]:
    """Find the missing keys without which every run is refused."""
    needed = _ALWAYS if policy.without_differential_privacy else _ALWAYS + _WITH_NOISE
    return [name for name in needed if getattr(policy, name) in (None, ())]
