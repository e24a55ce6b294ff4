"""The state of a site's privacy budget according to its ledger, for checks and status."""

import math
from dataclasses import dataclass
from pathlib import Path

from fedglm.privacy.custody.store import LEDGER
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.ledger.spending import Spending
from fedglm.privacy.policy.policy import Policy


@dataclass(frozen=True)
class BudgetState:
    """The privacy budget of a data set.

    Attributes:
        releases: Number of rows in the ledger.
        last: Time of the last row, UTC, ISO 8601; None for none.
        spent: Spent epsilon at the policy's delta, see `Spending.epsilon`.
        epsilon: Maximum epsilon of the policy; None where it sets no limit.
    """

    releases: int
    last: str | None
    spent: float | None
    epsilon: float | None

    @property
    def without_noise(self) -> bool:
        """Whether anything was released without noise, so that no epsilon holds."""
        return self.spent == math.inf

    @property
    def left(self) -> float | None:
        """Remaining epsilon; None where there is no limit."""
        return None if self.epsilon is None or self.spent is None else max(0.0, self.epsilon - self.spent)


def read_budget(custody: Path, policy: Policy) -> BudgetState:
    """Read and verify the ledger in a custody folder.

    Args:
        custody: The custody folder.
        policy: Policy with the data set and its budget.

    Raises:
        LedgerError: The ledger is missing or damaged.
    """
    rows = Ledger(custody / LEDGER).rows()
    spending = Spending.select(rows, policy.data_set)
    epsilon = policy.epsilon if policy.delta is not None else None
    return BudgetState(len(rows), rows[-1].time if rows else None, spending.epsilon(policy.delta), epsilon)
