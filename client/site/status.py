"""Status of a site: what its policy permits, what was released, what was refused."""

import datetime
from dataclasses import dataclass

from fedglm.client.link.state import LinkState
from fedglm.client.site.folder import Site
from fedglm.privacy.custody.budget_state import BudgetState, read_budget
from fedglm.privacy.custody.refusal_log import RefusalLog
from fedglm.privacy.custody.store import POLICY, REFUSALS, is_initialized
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy
from fedglm.privacy.policy.rules import find_missing_keys


@dataclass(frozen=True)
class SiteStatus:
    """Status of a site, from its files.

    Attributes:
        policy: Policy in force; None for none.
        budget: Budget of its data set and what was spent; None without a policy.
        missing_keys: Keys without which the policy refuses every run.
        refusals: Number of refused messages.
        last_refusal: Time, rule and reason of the last refusal; None for none.
        last_work: Time (UTC) when the node last stored the effect of a server's message; None for never.
        link: State of the link as the node recorded it last, which tells nothing once the node has ended; None for
            never.
    """

    policy: Policy | None
    budget: BudgetState | None
    missing_keys: tuple[str, ...]
    refusals: int
    last_refusal: tuple[str, str, str] | None
    last_work: datetime.datetime | None
    link: LinkState | None


def read_status(site: Site) -> SiteStatus:
    """Read the status of a site.

    Raises:
        PrivacyError: Key, policy, ledger or log of refusals is damaged.
    """
    folder = site.custody_folder
    policy = load_policy(folder / POLICY, site.key().public) if is_initialized(folder) else None
    refusals = RefusalLog(folder / REFUSALS).summary()
    last = refusals.last
    last_work = find_last_work(site)
    return SiteStatus(
        policy=policy,
        budget=read_budget(folder, policy) if policy is not None else None,
        missing_keys=tuple(find_missing_keys(policy)) if policy is not None else (),
        refusals=refusals.by_rule.total(),
        last_refusal=(last.time, last.rule, last.reason) if last is not None else None,
        last_work=datetime.datetime.fromtimestamp(last_work, datetime.UTC) if last_work is not None else None,
        link=LinkState.read(site.state),
    )


def find_last_work(site: Site) -> float | None:
    """Return when the node last stored the effect of a server's message, in seconds since the epoch; None for never."""
    times = [path.stat().st_mtime for pattern in ("run.plan", "*/state.json") for path in site.home.glob(pattern)]
    return max(times, default=None)
