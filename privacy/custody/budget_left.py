"""What a site's ledger says that is left of its privacy budget, for checks and status."""

import math
from dataclasses import dataclass
from pathlib import Path

from fedglm.privacy.custody.store import LEDGER
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.policy.policy import Policy


@dataclass(frozen=True)
class BudgetState:
    """Where a data set stands.

    Attributes:
        releases: Rows of the ledger.
        last: When the last one was written, UTC, ISO 8601; None for none.
        spent: Epsilon at the policy's delta, see `Spending.epsilon`.
        epsilon: What the policy permits in all; None where it sets no limit.
    """

    releases: int
    last: str | None
    spent: float | None
    epsilon: float | None

    @property
    def without_noise(self) -> bool:
        """Whether something was released without noise, so that no epsilon holds."""
        return self.spent == math.inf

    @property
    def left(self) -> float | None:
        """Epsilon that is left; None where there is no limit."""
        return None if self.epsilon is None or self.spent is None else max(0.0, self.epsilon - self.spent)


def read_budget(custody: Path, policy: Policy) -> BudgetState:
    """Read and verify the ledger in a custody folder.

    Args:
        custody: The folder.
        policy: Names the data set and its budget.

    Raises:
        LedgerError: It is missing or damaged.
    """
    ledger = Ledger(custody / LEDGER)
    rows, spending = ledger.rows(), ledger.spending(policy.data_set)
    epsilon = policy.epsilon if policy.delta is not None else None
    return BudgetState(len(rows), rows[-1].time if rows else None, spending.epsilon(policy.delta), epsilon)
