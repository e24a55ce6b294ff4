"""Verifies a site's custody folder: policy, plans, releases, ledger and log agree, and the privacy budget is kept."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedglm.audit.records.checks import Check
from fedglm.audit.records.ledger_scan import check_ledger
from fedglm.audit.records.log_lines import check_lines
from fedglm.audit.records.log_records import KnownKeys, LogRecord, read_log
from fedglm.audit.records.log_summary import ReleaseGroup
from fedglm.privacy.accounting.accountant import bound_epsilon, compute_epsilon, is_within_budget
from fedglm.privacy.custody.store import FOLDER, LEDGER, POLICY
from fedglm.privacy.dp.mechanism import MAX_STEPS, Event, Mechanism
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.ledger.charges import find_data_set_pairs
from fedglm.privacy.log.signed_log import LOG
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy
from fedglm.privacy.policy.rules import PLAN_RULES, find_broken_rules
from fedglm.privacy.policy.run_plan import RunPlan, SignedPlan

_EPSILON_TOLERANCE = 0.03
"""Largest difference of a reported epsilon from the one computed from the rows: the accountants' own errors."""

_PLAN_RULES = tuple(rule for rule in PLAN_RULES if rule.name != "epsilon-budget")
"""Rules that a plan can be checked against alone; the total that all releases spent is computed separately."""

_MAX_ROWS_A_MESSAGE = 2
"""Rows of the ledger that one message may have: an update and its measures."""


@dataclass(frozen=True)
class DataSetBudget:
    """Privacy budget of a data set, by a site's log: what was spent, and the limit at the last release.

    Attributes:
        data_set: The site's name for the data set.
        epsilon: Epsilon that all of its releases have spent, by two accountants; None if one left without noise.
        delta: Delta of that epsilon; None if the policy sets none.
        limit: Epsilon that the policy permits; None if it sets none.
    """

    data_set: str
    epsilon: float | None
    delta: float | None
    limit: float | None


@dataclass(frozen=True)
class SiteAudit:
    """Result of verifying a custody folder.

    Attributes:
        log: The log; None if it cannot be read.
        checks: All checks.
        budgets: Budget of each data set; None if the releases do not keep to what was in force, so that no figure is
            valid.
    """

    log: LogRecord | None
    checks: list[Check]
    budgets: list[DataSetBudget] | None = None


def audit_site(folder: Path, known: KnownKeys) -> SiteAudit:
    """Verify a custody folder by itself.

    Args:
        folder: Folder with policy, ledger and log.
        known: See `read_log`.
    """
    name = folder.absolute().parent.name if folder.name == FOLDER else folder.name
    record, checks = read_log(folder / LOG, "site", name, folder / LEDGER, known)
    if record is None:
        return SiteAudit(None, checks)
    checks += check_lines(record)
    policies = {entry["number"]: entry for entry in record.rare_entries("policy")}
    plans, plan_check = _check_plans(record)
    releases = _check_releases(record, policies, plans)
    checks += [_check_policy_in_force(record, folder), plan_check, *_check_countersigners(record)]
    checks += [_check_ledger(record, folder / LEDGER), releases]
    if not releases.passed:
        return SiteAudit(record, checks)
    spent_budgets = _check_epsilons(record, policies)
    return SiteAudit(record, checks + [check for _, check in spent_budgets], [budget for budget, _ in spent_budgets])


def _make_check(record: LogRecord, name: str, passed: bool | None, detail: str, *, missing: bool = False) -> Check:
    return Check(subject=record.subject, name=name, passed=passed, detail=detail, missing=missing)


def _check_policy_in_force(record: LogRecord, folder: Path) -> Check:
    """Check that the policy beside the log is signed by the site, and is the one that the log says is in force."""
    entries = record.rare_entries("policy")
    try:
        policy = load_policy(folder / POLICY, record.keys[-1])
    except PrivacyError as exc:
        return _make_check(record, "policy", False, str(exc))
    if not entries:
        return _make_check(record, "policy", None, "signed, and not in force yet")
    if entries[-1]["policy"] != policy.sha256:
        # An older policy, which was signed once, may have been restored in its place.
        detail = f"signed, and not in force; entry {entries[-1]['number']} shows the one that is, which is not here"
        return _make_check(record, "policy", None, detail, missing=True)
    # Parsed first, for an entry of an earlier version lacks the keys that came since.
    if Policy.model_validate(entries[-1]["content"]).model_dump() != policy.model_dump():
        return _make_check(
            record, "policy", False, f"entry {entries[-1]['number']} shows other rules than the policy has"
        )
    return _make_check(record, "policy", True, f"signed by the site, in force since entry {entries[-1]['number']}")


def _check_plans(record: LogRecord) -> tuple[dict[str, tuple[int, SignedPlan]], Check]:
    """Check that each plan that the site admitted is signed by its server.

    Returns:
        Number of the first entry about each plan, and the plan, by its SHA-256 (hex); and the check.
    """
    plans: dict[str, tuple[int, SignedPlan]] = {}
    for entry in record.rare_entries("plan"):
        number = entry["number"]
        try:
            signed = SignedPlan.from_text(entry["signed"])
        except (PrivacyError, ValueError) as exc:
            return plans, _make_check(record, "plans", False, f"entry {number}: {exc}")
        if (signed.plan.sha256, signed.server.hex) != (entry["plan"], entry["server"]):
            return plans, _make_check(record, "plans", False, f"entry {number}: it shows another plan than it names")
        plans.setdefault(entry["plan"], (number, signed))
    return plans, _make_check(record, "plans", True, f"{len(plans)} admitted, each signed by its server")


def _check_countersigners(record: LogRecord) -> list[Check]:
    """Check that each countersignature is by a server whose plan was admitted."""
    servers = {entry["server"] for entry in record.rare_entries("plan")}
    for entry in record.rare_entries("countersigned"):
        if entry["by"] not in servers:
            detail = f"entry {entry['number']}: countersigned by a key that signed none of the plans"
            return [_make_check(record, "countersigner", False, detail)]
    return []


def _check_ledger(record: LogRecord, path: Path) -> Check:
    """Check the ledger by itself and against the log."""
    try:
        rows, fault = check_ledger(path, record.scan)
    except PrivacyError as exc:
        return _make_check(record, "ledger", False, str(exc))
    if fault:
        return _make_check(record, "ledger", False, fault)
    logged = record.scan.rows
    if rows > logged + _MAX_ROWS_A_MESSAGE:
        return _make_check(
            record, "ledger", False, f"row {logged + 1}: the log shows {logged} rows, the ledger has {rows}"
        )
    if rows > logged:
        detail = f"row {logged + 1} was charged and its entry is missing: the node was killed there, or the log was cut"
        return _make_check(record, "ledger", None, detail, missing=True)
    return _make_check(record, "ledger", True, f"{rows} rows, each of which the log shows")


def _check_releases(
    record: LogRecord, policies: dict[int, dict[str, Any]], plans: dict[str, tuple[int, SignedPlan]]
) -> Check:
    """Check that each release left under a policy and a plan that were in force, and keeps to both."""
    for group in record.scan.groups.values():
        if (fault := _find_fault(group, policies, plans)) is not None:
            return _make_check(record, "releases", False, f"entry {group.decreased_at or group.first}: {fault}")
    count = sum(group.count for group in record.scan.groups.values())
    return _make_check(record, "releases", True, f"{count}, each by a plan and a policy that were in force")


def _find_fault(
    group: ReleaseGroup, policies: dict[int, dict[str, Any]], plans: dict[str, tuple[int, SignedPlan]]
) -> str | None:
    """Describe how a group of releases breaks its policy or plan; None if it does not."""
    fields = group.fields
    entry = policies.get(group.policy_entry)
    if entry is None or entry["policy"] != fields["policy"]:
        return "it left under a policy that was not in force"
    if group.decreased_at:
        return "the epsilon that it tells is less than what was spent before it"
    policy = Policy.model_validate(entry["content"])
    noise = None if fields["mechanism"] is None else Mechanism.from_fields(fields["mechanism"])
    if policy.data_set != fields["data_set"]:
        return f"it is of the data set {fields['data_set']}, and the policy is about {policy.data_set}"
    if noise is not None and fields["delta"] not in (None, policy.delta):
        return f"it tells epsilon at delta {fields['delta']:g}, and the policy's is {policy.delta}"
    if noise is None and not policy.without_differential_privacy:
        return "it left without noise, which the policy does not permit"
    if noise is not None and noise.noise_multiplier < (policy.noise_multiplier_at_least or math.inf):
        return "it has less noise than the policy asks for"
    # Measures are clipped to their own bounds, in other units than gradients.
    is_update = fields["purpose"] == "update"
    if noise is not None and is_update and noise.clipping_norm > (policy.clipping_norm_at_most or 0.0):
        return "its clipping norm is above the policy's"
    if group.max_bytes > (policy.bytes_at_most or 0):
        return f"it has {group.max_bytes} bytes, more than the policy permits"
    if fields["plan"] not in plans:
        return None if noise is None else "it left with noise, and without a plan"
    if fields["purpose"] == "metrics" and not policy.metrics:
        return "it is of measures, and the policy lists no metrics"
    number, signed = plans[fields["plan"]]
    for rule, reason in find_broken_rules(_PLAN_RULES, signed, policy):
        return f"its plan breaks the policy's rule {rule.name}: {reason}"
    if number > group.first:
        return "it left before its plan was admitted"
    return _find_plan_fault(group, signed.plan, noise)


def _find_plan_fault(group: ReleaseGroup, plan: RunPlan, noise: Mechanism | None) -> str | None:
    """Describe how a group of releases breaks its plan; None if it does not."""
    fields = group.fields
    announced = plan.spec.noise.mechanism if fields["purpose"] == "update" else plan.spec.noise.metrics
    if fields["run"] != plan.run:
        return "it is of another run than its plan"
    if group.round_range[1] > plan.spec.rounds:
        return f"it is of round {group.round_range[1]}, and the plan has {plan.spec.rounds}"
    if fields["codec"] not in (None, plan.spec.codec):
        return f"its codec is {fields['codec']}, the plan's {plan.spec.codec}"
    if plan.spec.noise.mechanism is None:
        return None if noise is None else "it has noise, and the plan has none"
    if noise is None or announced is None:
        return "its plan asks for noise, and it has none"
    same_mechanism = {**noise.to_fields(), "noise_multiplier": 0} == {**announced.to_fields(), "noise_multiplier": 0}
    if not same_mechanism or noise.noise_multiplier < announced.noise_multiplier:
        return "it was noised in another way than its plan says"
    return None


def _check_epsilons(record: LogRecord, policies: dict[int, dict[str, Any]]) -> list[tuple[DataSetBudget, Check]]:
    """Compute what each data set has spent, from the rows alone, and check it against the limit of its policy.

    The sum is computed here and not by `privacy.ledger.spending`, which the node itself uses: a fault there would hide
    itself.
    """
    groups = list(record.scan.groups.values())
    pairs = {(group.fields["data_set"], group.fields["commitment"]) for group in groups}
    spent_budgets = []
    while pairs:
        name, content = min(pairs)
        same = find_data_set_pairs(pairs, name, content)
        pairs -= same
        own = [group for group in groups if (group.fields["data_set"], group.fields["commitment"]) in same]
        spent_budgets.append(_check_epsilon(record, name, own, policies))
    return spent_budgets


def _check_epsilon(
    record: LogRecord, name: str, groups: list[ReleaseGroup], policies: dict[int, dict[str, Any]]
) -> tuple[DataSetBudget, Check]:
    """Compute by two accountants what one data set has spent, and check it against the limit of its policy."""
    last = max(groups, key=lambda group: group.last)
    policy = Policy.model_validate(policies[last.policy_entry]["content"])
    budget = DataSetBudget(name, None, policy.delta, policy.epsilon)
    unnoised = [group.first for group in groups if group.fields["mechanism"] is None]
    if unnoised:
        detail = f"{name}: no epsilon holds: entry {min(unnoised)} left without noise, as the policy permits"
        return budget, _make_check(record, "epsilon", None, detail)
    if policy.epsilon is None or policy.delta is None:
        detail = f"{name}: entry {last.first} left with noise, and no limit was set"
        return budget, _make_check(record, "epsilon", False, detail)
    events = [event for group in groups for event in _expand_events(group)]
    total = compute_epsilon(events, policy.delta)
    by = f"PRV {total.prv:.3f}, PLD {total.pld:.3f}" if total.prv is not None and total.pld is not None else "RDP"
    detail = f"{name}: {total.epsilon:.3f} of {policy.epsilon:g} at delta {policy.delta:g} ({by})"
    budget, reported, fault = replace(budget, epsilon=total.epsilon), last.epsilon, ""
    overspent = next(_find_overspent(groups, policies), None)
    if overspent is not None:
        fault = f": by entry {overspent} more was spent than the policy permits that was in force"
    elif reported is None:
        fault = f", and entry {last.last} tells none"
    elif abs(reported - bound_epsilon(events, policy.delta)) > _EPSILON_TOLERANCE:
        fault = f", and the log tells {reported:.3f}"
    return budget, _make_check(record, "epsilon", not fault, detail + fault)


def _find_overspent(groups: list[ReleaseGroup], policies: dict[int, dict[str, Any]]) -> Iterator[int]:
    """Yield the last entry under each policy by which more was spent than that policy permits.

    Each policy is checked by itself, for a later one may permit more.
    """
    for number in sorted({group.policy_entry for group in groups}):
        policy = Policy.model_validate(policies[number]["content"])
        until = [group for group in groups if group.policy_entry <= number]
        events = [event for group in until for event in _expand_events(group)]
        if policy.epsilon is None or policy.delta is None or not is_within_budget(events, policy.epsilon, policy.delta):
            yield max(group.last for group in until)


def _expand_events(group: ReleaseGroup) -> Iterator[Event]:
    """Yield the events of all of a group's releases, merged into as few as `MAX_STEPS` allows."""
    one = Mechanism.from_fields(group.fields["mechanism"]).event()
    left = one.steps * group.count
    while left > 0:
        yield replace(one, steps=min(left, MAX_STEPS))
        left -= MAX_STEPS
