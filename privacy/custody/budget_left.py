"""What a site's ledger says that is left of its privacy budget, for checks, status and metrics."""

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
        spent: Epsilon at the policy's delta; infinite once something was released without noise; None where that
            cannot be told, see `spent_on`.
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
    rows = ledger.rows()
    epsilon = policy.epsilon if policy.delta is not None else None
    return BudgetState(len(rows), rows[-1].time if rows else None, spent_on(ledger, policy.data_set, policy), epsilon)


def spent_on(ledger: Ledger, data_set: str, policy: Policy) -> float | None:
    """Epsilon at the policy's delta that was spent on a data set.

    Args:
        ledger: Verified as it is read.
        data_set: Its name.
        policy: Says delta.

    Returns:
        Infinite once something was released without noise; None where something was released and the policy does not
        say at which delta to tell.
    """
    # The content as it was last charged: to commit to the records anew would mean to read them all.
    contents = [row.charge.commitment for row in ledger.rows() if row.charge.data_set == data_set]
    if not contents:
        return 0.0
    if any(row.charge.mechanism is None for row in ledger.history(data_set, contents[-1])):
        return math.inf
    return None if policy.delta is None else ledger.spent(data_set, contents[-1], policy.delta).epsilon
