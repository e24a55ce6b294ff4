"""Where a site stands, for people and for machines: what it permits, what has left, what it refused."""

import datetime
from dataclasses import dataclass

from fedglm.client.site.folder import Site
from fedglm.privacy.custody.budget_state import BudgetState, read_budget
from fedglm.privacy.custody.refusal_log import RefusalLog
from fedglm.privacy.custody.store import POLICY, REFUSALS, is_initialized
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy
from fedglm.privacy.policy.rules import find_missing_keys


@dataclass(frozen=True)
class SiteStatus:
    """What the files of a site say.

    Attributes:
        policy: In force; None for none.
        budget: What its data set has spent; None without a policy.
        missing_keys: Keys of the policy without which every run is refused.
        refusals: How many messages were refused.
        last_refusal: Time, rule and reason of the last one; None for none.
        last_work: When the node last wrote down what a server's message brought; None for never.
    """

    policy: Policy | None
    budget: BudgetState | None
    missing_keys: tuple[str, ...]
    refusals: int
    last_refusal: tuple[str, str, str] | None
    last_work: datetime.datetime | None


def read_status(site: Site) -> SiteStatus:
    """Read them.

    Raises:
        PrivacyError: Key, policy, ledger or log of refusals are damaged.
    """
    folder = site.custody_folder
    policy = load_policy(folder / POLICY, site.key().public) if is_initialized(folder) else None
    refusals = RefusalLog(folder / REFUSALS).summary()
    last = refusals.last
    return SiteStatus(
        policy=policy,
        budget=read_budget(folder, policy) if policy is not None else None,
        missing_keys=tuple(find_missing_keys(policy)) if policy is not None else (),
        refusals=refusals.by_rule.total(),
        last_refusal=(last.time, last.rule, last.reason) if last is not None else None,
        last_work=_last_work(site),
    )


def _last_work(site: Site) -> datetime.datetime | None:
    written = [path.stat().st_mtime for pattern in ("run.plan", "*/state.json") for path in site.home.glob(pattern)]
    return datetime.datetime.fromtimestamp(max(written), datetime.UTC) if written else None
