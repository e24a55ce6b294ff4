"""What a data set has spent: the one place where rows of a ledger are added up.

Gate, log, command line, status and metrics all ask here. The auditor does not: `audit/verify` adds the entries of the
signed log up by itself, for it must not believe the node's own sum.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from fedglm.privacy.accounting.accountant import EpsilonBounds, bound_epsilon, compute_epsilon, is_within_budget
from fedglm.privacy.dp.mechanism import Event
from fedglm.privacy.ledger.charges import Budget, LedgerRow, related


@dataclass(frozen=True)
class Spending:
    """The releases that count against one data set.

    Attributes:
        rows: Their rows, the oldest first.
    """

    rows: tuple[LedgerRow, ...]

    @classmethod
    def of(cls, rows: Iterable[LedgerRow], data_set: str, commitment: str | None = None) -> Self:
        """Select the rows that count against a data set: see `related`.

        Args:
            rows: Of the whole ledger.
            data_set: Its name.
            commitment: Of its content, by which rows under other names are known; without it, only by the content of
                rows under this name: to commit to the records anew would mean to read them all.
        """
        return cls(tuple(related(rows, data_set, commitment)))

    @property
    def without_noise(self) -> bool:
        """Whether something was released without noise, so that no epsilon holds."""
        return any(row.charge.mechanism is None for row in self.rows)

    @property
    def events(self) -> list[Event]:
        """What was released with noise, for the accountant."""
        return [row.charge.mechanism.event() for row in self.rows if row.charge.mechanism is not None]

    def at(self, delta: float) -> EpsilonBounds:
        """By all accountants; infinite once something was released without noise.

        Raises:
            PrivacyError: `delta` is not between 1e-10 and 0.1.
        """
        noised = compute_epsilon(self.events, delta)
        return EpsilonBounds(math.inf, None, None, math.inf, delta) if self.without_noise else noised

    def epsilon(self, delta: float | None) -> float | None:
        """The headline at a policy's delta.

        Args:
            delta: None where the policy names none.

        Returns:
            0 where nothing was released, and infinite once something was without noise, whatever `delta` is; None where
            something was released with noise and there is no delta to tell it at.

        Raises:
            PrivacyError: `delta` is not between 1e-10 and 0.1.
        """
        if self.without_noise:
            return math.inf
        if not self.rows:
            return 0.0
        return None if delta is None else self.at(delta).epsilon

    def bound_epsilon(self, delta: float) -> float:
        """Quicker than `at`, and as near to 0.02; infinite once something was released without noise.

        Raises:
            PrivacyError: `delta` is not between 1e-10 and 0.1.
        """
        return math.inf if self.without_noise else bound_epsilon(self.events, delta)

    def stays_within(self, budget: Budget, further: Iterable[Event] = ()) -> bool:
        """Whether all this and `further` releases with noise spend no more than a budget."""
        return not self.without_noise and is_within_budget([*self.events, *further], budget.epsilon, budget.delta)
