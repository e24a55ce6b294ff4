"""The privacy ledger of a node: the charges for all releases so far, on the disk before anything leaves.

It is a `ChainedFile` of rows. Whoever can write the file can also restore an old copy; that is detected with the anchor
that the server keeps and sends back.

A ledger belongs to data, not to a run: the rows of a data set, by its name or its content, add up for ever, over all
runs and federations. A charge remains even if its message is lost. A retry is an attempt that was charged before, which
`has_charged` recognizes by its id, and is not charged again; new noise is a new charge, whatever bytes it gives.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from fedglm.privacy.errors import LedgerError, PrivacyError, Refusal
from fedglm.privacy.ledger.charges import Budget, Charge, LedgerRow, RowGroup, group_rows
from fedglm.privacy.ledger.spending import Spending
from fedglm.privacy.log.chained_file import ChainedFile, Head, utc_now

BUDGET_RULE: Final = "epsilon-budget"
"""Rule that refuses a charge beyond the budget."""


class Ledger(ChainedFile):
    """A ledger in the file at `path`, which `create` made; several processes may use it at once.

    Opening verifies all rows. Each method reads and verifies the rows that other processes have added since.

    Raises:
        LedgerError: There is no such file, it is damaged, or it cannot be read. A lost ledger is not replaced by an
            empty one, for that would forget what was spent.
    """

    noun = "ledger"
    table = "charges"
    missing_reason = "a new one would forget what was spent"
    error = LedgerError

    def __init__(self, path: Path) -> None:
        self._rows: list[LedgerRow] = []
        super().__init__(path)

    @classmethod
    def create(cls, path: Path) -> "Ledger":
        """Create an empty ledger in a new file, readable by its owner only: once in the life of a node.

        Raises:
            LedgerError: The file exists already, or cannot be written.
        """
        cls._create_file(path)
        return cls(path)

    def rows(self) -> list[LedgerRow]:
        """Return all rows, oldest first."""
        with self._reading():
            return list(self._rows)

    def summary(self) -> list[RowGroup]:
        """Return all rows in groups, for printing; see `RowGroup`."""
        return list(group_rows(self.rows()))

    def spending(self, data_set: str, commitment: str | None = None) -> Spending:
        """Return the spending of a data set; see `Spending.select`."""
        return Spending.select(self.rows(), data_set, commitment)

    def has_charged(self, charge: Charge) -> bool:
        """Return whether this attempt has been charged for this purpose, so that a retry may send its reply."""
        return any(row.charge.key == charge.key for row in self.rows())

    def check_budget(self, charge: Charge, budget: Budget | None, *others: Charge) -> None:
        """Refuse what `charge` would refuse, without writing: before training, which would otherwise be useless.

        Raises:
            Refusal: Rule `epsilon-budget`.
        """
        _check_budget(self.rows(), [charge, *others], budget)

    def charge(self, charge: Charge, budget: Budget | None, *others: Charge) -> Head:
        """Write a charge; it is durable on the disk when this returns. Only then may the release leave.

        Args:
            charge: The charge of the release.
            budget: Budget of the data set; None where the site sets no limit.
            others: Charges of other releases in the same message, from the same data set: all are written, or none.

        Returns:
            The new head of the ledger.

        Raises:
            Refusal: Rule `epsilon-budget`: with the charge, the data set would have spent more than the budget. Nothing
                was written.
            PrivacyError: An attempt was charged before for the same purpose, or the charges are of several data sets.
            LedgerError: The charge could not be written, or the ledger is damaged; the release must not leave.
        """
        with self._writing() as database:
            known = {row.charge.key for row in self._rows}
            if any(each.id is not None and each.key in known for each in (charge, *others)):
                raise PrivacyError("an attempt is charged once for each purpose")
            _check_budget(self._rows, [charge, *others], budget)
            time, head = utc_now(), self._head
            entries = [
                LedgerRow.entry(number, time, each) for number, each in enumerate((charge, *others), head.rows + 1)
            ]
            return self._append_entries(database, head, entries)

    def _accept_entry(self, content: bytes, digest: str) -> None:
        self._rows.append(LedgerRow.read(self._head, content, digest))


def _check_budget(rows: Iterable[LedgerRow], charges: Sequence[Charge], budget: Budget | None) -> None:
    first = charges[0]
    if any((each.data_set, each.commitment) != (first.data_set, first.commitment) for each in charges):
        raise PrivacyError("what is charged together is of one data set")
    if budget is None:
        return
    earlier = Spending.select(rows, first.data_set, first.commitment)
    new = [each.mechanism.event() for each in charges if each.mechanism is not None]
    limit = f"epsilon {budget.epsilon:g} at delta {budget.delta:g}"
    if len(new) < len(charges):
        raise Refusal(BUDGET_RULE, f"a release without noise stays within no budget, and {limit} is set")
    if earlier.without_noise:
        raise Refusal(BUDGET_RULE, f"data of this set was released without noise before, and {limit} is set")
    if not earlier.stays_within(budget, new):
        # How much was spent before stays at the site; a refusal may be sent to the server.
        raise Refusal(BUDGET_RULE, f"with what was spent before, this release would exceed {limit}")
