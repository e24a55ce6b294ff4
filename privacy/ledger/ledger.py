"""The privacy ledger of a node: what every release so far has spent, on the disk before anything leaves.

It is a `ChainedFile` of rows. Who can write the file can also put back an old copy; that is seen with the anchor that
the server keeps and gives back.

A ledger belongs to data, not to a run: the rows of a data set, by its name or its content, add up for good, over all
runs and federations. A charge stays though its message is lost. A retry is an attempt that was charged for, which
`has_charged` knows by its id, and is not charged again; fresh noise is a fresh charge, whatever bytes it makes.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from fedglm.privacy.errors import LedgerError, PrivacyError, Refusal
from fedglm.privacy.ledger.charges import Budget, Charge, LedgerRow, Stretch, stretches
from fedglm.privacy.ledger.spending import Spending
from fedglm.privacy.log.chained_file import ChainedFile, Head, utc_now

BUDGET_RULE: Final = "epsilon-budget"
"""The rule under which a charge is refused that would overspend."""


class Ledger(ChainedFile):
    """The ledger in the file at `path`, which `create` made; several processes may use it at once.

    Opening verifies all of it. Each method reads and verifies what other processes have added since.

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
        """An empty ledger in a new file, readable by its owner alone: once in the life of a node.

        Raises:
            LedgerError: There is a file at `path` already, or it cannot be written.
        """
        cls._create_file(path)
        return cls(path)

    def rows(self) -> list[LedgerRow]:
        """All rows, the oldest first."""
        with self._reading():
            return list(self._rows)

    def summary(self) -> list[Stretch]:
        """All rows for printing, those merged that differ only in round, time and release."""
        return list(stretches(self.rows()))

    def spending(self, data_set: str, commitment: str | None = None) -> Spending:
        """What counts against a data set; see `Spending.of`."""
        return Spending.of(self.rows(), data_set, commitment)

    def has_charged(self, charge: Charge) -> bool:
        """Whether this attempt has been charged for this purpose, so that a retry may send its answer."""
        return any(row.charge.key == charge.key for row in self.rows())

    def check_budget(self, charge: Charge, budget: Budget | None, *others: Charge) -> None:
        """Refuse what `charge` would refuse, and write nothing: before training, so that none is in vain.

        Raises:
            Refusal: Rule `epsilon-budget`.
        """
        _check_budget(self.rows(), [charge, *others], budget)

    def charge(self, charge: Charge, budget: Budget | None, *others: Charge) -> Head:
        """Write a charge down; on the disk for good when this returns. Only then may the release leave.

        Args:
            charge: The release.
            budget: What the data set may spend in all; None where the site sets no limit.
            others: What leaves in the same message, from the same data set: all are written, or none.

        Raises:
            Refusal: Rule `epsilon-budget`: with it, the data set would have spent more than the budget. Nothing was
                written.
            LedgerError: It could not be written, or the ledger is damaged; the release must not leave.
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
    earlier = Spending.of(rows, first.data_set, first.commitment)
    new = [each.mechanism.event() for each in charges if each.mechanism is not None]
    limit = f"epsilon {budget.epsilon:g} at delta {budget.delta:g}"
    if len(new) < len(charges):
        raise Refusal(BUDGET_RULE, f"a release without noise stays within no budget, and {limit} is set")
    if earlier.without_noise:
        raise Refusal(BUDGET_RULE, f"data of this set was released without noise before, and {limit} is set")
    if not earlier.stays_within(budget, new):
        # What was spent before is the site's own affair; a refusal may be told to the server.
        raise Refusal(BUDGET_RULE, f"with what was spent before, this release would exceed {limit}")
