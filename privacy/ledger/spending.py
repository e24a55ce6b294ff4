"""The spending of a data set: the one place where the rows of a ledger are summed up.

Gate, log, command line, status and metrics all use it. The auditor does not: `audit/verify` sums up the entries of the
signed log by itself, for it must not trust the node's own sum.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from fedglm.privacy.accounting.accountant import EpsilonBounds, bound_epsilon, compute_epsilon, is_within_budget
from fedglm.privacy.dp.mechanism import Event
from fedglm.privacy.ledger.charges import Budget, LedgerRow, select_related_rows


@dataclass(frozen=True)
class Spending:
    """The releases that count against one data set.

    Attributes:
        rows: Rows of the releases, oldest first.
    """

    rows: tuple[LedgerRow, ...]

    @classmethod
    def select(cls, rows: Iterable[LedgerRow], data_set: str, commitment: str | None = None) -> Self:
        """Select the rows that count against a data set: see `select_related_rows`.

        Args:
            rows: All rows of the ledger.
            data_set: Name of the data set.
            commitment: Commitment to its content, which finds rows under other names. Without it, these are found only
                by the content of rows under this name: computing the commitment would require reading all records.
        """
        return cls(tuple(select_related_rows(rows, data_set, commitment)))

    @property
    def without_noise(self) -> bool:
        """Whether anything was released without noise, so that no epsilon holds."""
        return any(row.charge.mechanism is None for row in self.rows)

    @property
    def events(self) -> list[Event]:
        """Events of the releases with noise, for the accountants."""
        return [row.charge.mechanism.event() for row in self.rows if row.charge.mechanism is not None]

    def at(self, delta: float) -> EpsilonBounds:
        """Compute epsilon at `delta` by all accountants; infinite once anything was released without noise.

        Raises:
            PrivacyError: `delta` is not between 1e-10 and 0.1.
        """
        noised = compute_epsilon(self.events, delta)
        return EpsilonBounds(math.inf, None, None, math.inf, delta) if self.without_noise else noised

    def epsilon(self, delta: float | None) -> float | None:
        """Compute the reported epsilon at a policy's delta.

        Args:
            delta: Delta of the policy; None where it has none.

        Returns:
            0 where nothing was released, and infinite once anything was without noise, whatever `delta` is; None where
            there are releases with noise and no delta.

        Raises:
            PrivacyError: `delta` is not between 1e-10 and 0.1.
        """
        if self.without_noise:
            return math.inf
        if not self.rows:
            return 0.0
        return None if delta is None else self.at(delta).epsilon

    def bound_epsilon(self, delta: float) -> float:
        """Compute epsilon faster than `at`, to 0.02 of it; infinite once anything was released without noise.

        Raises:
            PrivacyError: `delta` is not between 1e-10 and 0.1.
        """
        return math.inf if self.without_noise else bound_epsilon(self.events, delta)

    def stays_within(self, budget: Budget, further: Iterable[Event] = ()) -> bool:
        """Return whether these and `further` releases with noise stay within a budget."""
        return not self.without_noise and is_within_budget([*self.events, *further], budget.epsilon, budget.delta)
