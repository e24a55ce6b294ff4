"""Verification of a site's custody folder: policy, plans, releases, ledger and log agree, and the promise is kept."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedglm.audit.records.checks import Check
from fedglm.audit.records.ledger_scan import check_ledger
from fedglm.audit.records.log_lines import audit_lines
from fedglm.audit.records.log_records import KnownKeys, LogRecord, read_log
from fedglm.audit.records.log_summary import Group
from fedglm.privacy.accounting.accountant import spent, upper_bound, within
from fedglm.privacy.custody.store import FOLDER, LEDGER, POLICY
from fedglm.privacy.dp.mechanism import MAX_STEPS, Event, Mechanism
from fedglm.privacy.errors import PrivacyError
from fedglm.privacy.ledger.charges import one_data_set
from fedglm.privacy.log.signed_log import LOG
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy
from fedglm.privacy.policy.rules import PLAN_RULES, broken_rules
from fedglm.privacy.policy.run_plan import RunPlan, SignedPlan

_TOLD = 0.03
"""By so much an epsilon that a site told may differ from what the rows give: the accountants' own errors."""

_PLAN_RULES = tuple(rule for rule in PLAN_RULES if rule.name != "epsilon-budget")
"""That a plan can be held to alone; what all releases together spent is computed by itself."""

_ONE_MESSAGE = 2
"""Rows of the ledger that one message may have: an update and its measures."""


@dataclass(frozen=True)
class Promise:
    """What a data set has spent by a site's log, beside the promise under which it last released something.

    Attributes:
        data_set: The site's name for it.
        epsilon: By two accountants, from all of its releases; None where one left without noise.
        delta: That it is told at; None where the policy sets none.
        limit: The policy's epsilon; None where it sets none.
    """

    data_set: str
    epsilon: float | None
    delta: float | None
    limit: float | None


@dataclass(frozen=True)
class SiteAudit:
    """What is found in a custody folder.

    Attributes:
        log: None where it cannot be read.
        checks: All of them.
        promises: Of each data set; None where the releases do not keep to what was in force, so that no figure counts.
    """

    log: LogRecord | None
    checks: list[Check]
    promises: list[Promise] | None = None


def audit_site(folder: Path, known: KnownKeys) -> SiteAudit:
    """Verify a custody folder by itself.

    Args:
        folder: Of policy, ledger and log.
        known: As of `read_log`.
    """
    name = folder.absolute().parent.name if folder.name == FOLDER else folder.name
    record, checks = read_log(folder / LOG, "site", name, folder / LEDGER, known)
    if record is None:
        return SiteAudit(None, checks)
    checks += audit_lines(record)
    policies = {entry["number"]: entry for entry in record.of_kind("policy")}
    plans, plan_check = _plans(record)
    releases = _releases(record, policies, plans)
    checks += [_policy_in_force(record, folder), plan_check, *_countersigners(record)]
    checks += [_ledger(record, folder / LEDGER), releases]
    if not releases.held:
        return SiteAudit(record, checks)
    found = _epsilons(record, policies)
    return SiteAudit(record, checks + [check for _, check in found], [promise for promise, _ in found])


def _check(record: LogRecord, name: str, held: bool | None, said: str, *, missing: bool = False) -> Check:
    return Check(subject=record.subject, name=name, held=held, said=said, missing=missing)


def _policy_in_force(record: LogRecord, folder: Path) -> Check:
    """The policy beside the log is signed by the site, and the one that the log says is in force."""
    entries = record.of_kind("policy")
    try:
        policy = load_policy(folder / POLICY, record.keys[-1])
    except PrivacyError as exc:
        return _check(record, "policy", False, str(exc))
    if not entries:
        return _check(record, "policy", None, "signed, and not in force yet")
    if entries[-1]["policy"] != policy.sha256:
        # An older one that was signed once may have been put back in its place.
        said = f"signed, and not in force; entry {entries[-1]['number']} shows the one that is, which is not here"
        return _check(record, "policy", None, said, missing=True)
    if entries[-1]["content"] != policy.model_dump(mode="json"):
        return _check(record, "policy", False, f"entry {entries[-1]['number']} shows other rules than the policy has")
    return _check(record, "policy", True, f"signed by the site, in force since entry {entries[-1]['number']}")


def _plans(record: LogRecord) -> tuple[dict[str, tuple[int, SignedPlan]], Check]:
    found: dict[str, tuple[int, SignedPlan]] = {}
    for entry in record.of_kind("plan"):
        number = entry["number"]
        try:
            signed = SignedPlan.from_text(entry["signed"])
        except (PrivacyError, ValueError) as exc:
            return found, _check(record, "plans", False, f"entry {number}: {exc}")
        if (signed.plan.sha256, signed.server.hex) != (entry["plan"], entry["server"]):
            return found, _check(record, "plans", False, f"entry {number}: it shows another plan than it names")
        found.setdefault(entry["plan"], (number, signed))
    return found, _check(record, "plans", True, f"{len(found)} admitted, each signed by its server")


def _countersigners(record: LogRecord) -> list[Check]:
    """Who countersigned is a server whose plan was admitted."""
    servers = {entry["server"] for entry in record.of_kind("plan")}
    for entry in record.of_kind("countersigned"):
        if entry["by"] not in servers:
            said = f"entry {entry['number']}: countersigned by a key that signed none of the plans"
            return [_check(record, "countersigner", False, said)]
    return []


def _ledger(record: LogRecord, path: Path) -> Check:
    try:
        rows, fault = check_ledger(path, record.scan)
    except PrivacyError as exc:
        return _check(record, "ledger", False, str(exc))
    if fault:
        return _check(record, "ledger", False, fault)
    logged = record.scan.rows
    if rows > logged + _ONE_MESSAGE:
        return _check(record, "ledger", False, f"row {logged + 1}: the log shows {logged} rows, the ledger has {rows}")
    if rows > logged:
        said = f"row {logged + 1} was charged and its entry is missing: the node was killed there, or the log was cut"
        return _check(record, "ledger", None, said, missing=True)
    return _check(record, "ledger", True, f"{rows} rows, each of which the log shows")


def _releases(
    record: LogRecord, policies: dict[int, dict[str, Any]], plans: dict[str, tuple[int, SignedPlan]]
) -> Check:
    """Each release left under a policy and a plan that were in force, and keeps to both."""
    for group in record.scan.groups.values():
        if (fault := _fault(group, policies, plans)) is not None:
            return _check(record, "releases", False, f"entry {group.falls or group.first}: {fault}")
    count = sum(group.count for group in record.scan.groups.values())
    return _check(record, "releases", True, f"{count}, each by a plan and a policy that were in force")


def _fault(group: Group, policies: dict[int, dict[str, Any]], plans: dict[str, tuple[int, SignedPlan]]) -> str | None:
    fields = group.fields
    entry = policies.get(group.epoch)
    if entry is None or entry["policy"] != fields["policy"]:
        return "it left under a policy that was not in force"
    if group.falls:
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
    # Measures are cut to their own bounds, in other units than gradients.
    update = fields["purpose"] == "update"
    if noise is not None and update and noise.clipping_norm > (policy.clipping_norm_at_most or 0.0):
        return "its clipping norm is above the policy's"
    if group.max_bytes > (policy.bytes_at_most or 0):
        return f"it has {group.max_bytes} bytes, more than the policy permits"
    if fields["plan"] not in plans:
        return None if noise is None else "it left with noise, and without a plan"
    if fields["purpose"] == "metrics" and not policy.metrics:
        return "it is of measures, and the policy lists no metrics"
    number, signed = plans[fields["plan"]]
    for rule, reason in broken_rules(_PLAN_RULES, signed, policy):
        return f"its plan breaks the policy's rule {rule.name}: {reason}"
    return "it left before its plan was admitted" if number > group.first else _against_plan(group, signed.plan, noise)


def _against_plan(group: Group, plan: RunPlan, noise: Mechanism | None) -> str | None:
    fields = group.fields
    announced = plan.mechanism if fields["purpose"] == "update" else plan.metrics
    if fields["run"] != plan.run:
        return "it is of another run than its plan"
    if group.rounds[1] > plan.rounds:
        return f"it is of round {group.rounds[1]}, and the plan has {plan.rounds}"
    if fields["codec"] not in (None, plan.codec):
        return f"its codec is {fields['codec']}, the plan's {plan.codec}"
    if plan.mechanism is None:
        return None if noise is None else "it has noise, and the plan has none"
    if noise is None or announced is None:
        return "its plan asks for noise, and it has none"
    same = {**noise.to_fields(), "noise_multiplier": 0} == {**announced.to_fields(), "noise_multiplier": 0}
    if not same or noise.noise_multiplier < announced.noise_multiplier:
        return "it was noised in another way than its plan says"
    return None


def _epsilons(record: LogRecord, policies: dict[int, dict[str, Any]]) -> list[tuple[Promise, Check]]:
    """What each data set has spent, by two accountants from the rows alone, against the limit of its policy.

    Added up here, and not by `privacy.ledger.spending`, which the node itself uses: a fault there would hide itself.
    """
    groups = list(record.scan.groups.values())
    pairs = {(group.fields["data_set"], group.fields["commitment"]) for group in groups}
    found = []
    while pairs:
        name, content = min(pairs)
        same = one_data_set(pairs, name, content)
        pairs -= same
        own = [group for group in groups if (group.fields["data_set"], group.fields["commitment"]) in same]
        found.append(_epsilon(record, name, own, policies))
    return found


def _epsilon(
    record: LogRecord, name: str, groups: list[Group], policies: dict[int, dict[str, Any]]
) -> tuple[Promise, Check]:
    last = max(groups, key=lambda group: group.last)
    policy = Policy.model_validate(policies[last.epoch]["content"])
    promise = Promise(name, None, policy.delta, policy.epsilon)
    bare = [group.first for group in groups if group.fields["mechanism"] is None]
    if bare:
        said = f"{name}: no epsilon holds: entry {min(bare)} left without noise, as the policy permits"
        return promise, _check(record, "epsilon", None, said)
    if policy.epsilon is None or policy.delta is None:
        said = f"{name}: entry {last.first} left with noise, and no limit was set"
        return promise, _check(record, "epsilon", False, said)
    events = [event for group in groups for event in _events(group)]
    total = spent(events, policy.delta)
    by = f"PRV {total.prv:.3f}, PLD {total.pld:.3f}" if total.prv is not None and total.pld is not None else "RDP"
    said = f"{name}: {total.epsilon:.3f} of {policy.epsilon:g} at delta {policy.delta:g} ({by})"
    promise, told, wrong = replace(promise, epsilon=total.epsilon), last.epsilon, ""
    over = next(_overspent(groups, policies), None)
    if over is not None:
        wrong = f": by entry {over} more was spent than the policy permits that was in force"
    elif told is None:
        wrong = f", and entry {last.last} tells none"
    elif abs(told - upper_bound(events, policy.delta)) > _TOLD:
        wrong = f", and the log tells {told:.3f}"
    return promise, _check(record, "epsilon", not wrong, said + wrong)


def _overspent(groups: list[Group], policies: dict[int, dict[str, Any]]) -> Iterator[int]:
    """The last entry under each policy by which more was spent than it permits: a later one may permit more."""
    for epoch in sorted({group.epoch for group in groups}):
        policy, until = Policy.model_validate(policies[epoch]["content"]), [g for g in groups if g.epoch <= epoch]
        events = [event for group in until for event in _events(group)]
        if policy.epsilon is None or policy.delta is None or not within(events, policy.epsilon, policy.delta):
            yield max(group.last for group in until)


def _events(group: Group) -> Iterator[Event]:
    """All of a group's releases: as many steps more."""
    one = Mechanism.from_fields(group.fields["mechanism"]).event()
    left = one.steps * group.count
    while left > 0:
        yield replace(one, steps=min(left, MAX_STEPS))
        left -= MAX_STEPS
