"""The transaction by which something leaves a site: budget, ledger, log, and only then the release.

    1  the log is locked: other processes of the site wait
    2  rows that a killed process charged and gave no entry get theirs, `charged`
    3  the ledger checks the budget and is charged: on the disk for good
    4  the log gets an entry for each new row, signed: on the disk for good, and unlocked
    5  the caller may release

Killed before 3, nothing has happened. Killed between 3 and 4, the charge stands and has no entry: the next transaction
begins with it. So each row of the ledger has one entry in the log, in the same order, neither can be cut or put back
without the other, and who keeps an anchor of the log has one of both.
"""

from collections.abc import Sequence

from fedglm.privacy.custody.site_log import CustodyLog, EntryWriter, Release
from fedglm.privacy.errors import LogError, PrivacyError, Refusal
from fedglm.privacy.ledger.charges import Budget, Charge, LedgerRow
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.ledger.spending import Spending
from fedglm.privacy.policy.policy import Policy


class ReleaseTransaction:
    """Charges, logs and releases, over the two files of one site; several processes may at once.

    Args:
        ledger: The site's.
        log: The site's.
    """

    def __init__(self, ledger: Ledger, log: CustodyLog) -> None:
        self._ledger, self._log = ledger, log

    def verify(self) -> None:
        """Hold ledger and log to each other.

        Raises:
            LogError: One of them was rolled back, or changed.
        """
        self._verify(self._ledger.rows(), 0)

    def put_in_force(self, policy: Policy) -> None:
        """Log that a policy is in force from now on; what was charged for before it stands before it.

        Raises:
            LogError: It could not be written, or ledger and log contradict each other.
        """
        if policy.sha256 == self._log.policy:
            return
        with self._log.writing() as writer:
            self._mend(self._ledger.rows(), writer)
            writer.policy(policy)

    def check_budget(self, budget: Budget | None, charges: Sequence[Charge]) -> None:
        """Refuse beforehand what `charge` would refuse for its budget, and write nothing.

        Raises:
            Refusal: Rule `epsilon-budget`.
        """
        first, *others = charges
        self._ledger.check_budget(first, budget, *others)

    def charge(self, budget: Budget | None, releases: Sequence[Release]) -> None:
        """Charge for what leaves in a message, and log it; only when this returns may it leave.

        What was charged for this very attempt leaves again for nothing.

        Args:
            budget: What the data set may spend in all; None for no limit.
            releases: All that leaves.

        Raises:
            Refusal: Rule `epsilon-budget`, or `policy-changed`: it was made under another policy than is in force.
            LedgerError, LogError: It could not be written.
        """
        self._catch_up()
        with self._log.writing() as writer:  # others wait: charge and entry belong together
            fresh = self._fresh([each.charge for each in releases], writer)
            for each in releases:
                # Once, however often it is asked for.
                if each.charge not in fresh and each.charge.release not in self._log.resent:
                    writer.resent(each)
            if not fresh:
                return
            head = self._ledger.charge(fresh[0], budget, *fresh[1:])
            rows = self._ledger.rows()[: head.rows]
            new = [each for each in releases if each.charge in fresh]
            for release, row in zip(new, rows[-len(new) :], strict=True):
                # What leaves in one message is spent together: each entry tells epsilon with all of it.
                writer.released(row, _spending(rows, row), release)

    def charge_failed(self, budget: Budget | None, charges: Sequence[Charge]) -> None:
        """Charge for an attempt of which nothing leaves, and log it; for one that was charged before, do nothing.

        Args:
            budget: What the data set may spend in all; None for no limit.
            charges: All that the attempt's noise was for.

        Raises:
            Refusal, LedgerError, LogError: As `charge`; nothing of the attempt could have left then.
        """
        self._catch_up()
        with self._log.writing() as writer:
            fresh = self._fresh(charges, writer)
            if fresh:
                self._ledger.charge(fresh[0], budget, *fresh[1:])
                self._mend(self._ledger.rows(), writer)

    def _catch_up(self) -> None:
        """By itself: whatever happens to the next charge, the log knows those before it."""
        if len(rows := self._ledger.rows()) > len(self._log.row_hashes):
            with self._log.writing() as writer:
                self._mend(rows, writer)

    def _fresh(self, charges: Sequence[Charge], writer: EntryWriter) -> list[Charge]:
        """Those of the charges that no row has paid for yet."""
        rows = self._ledger.rows()
        self._mend(rows, writer)
        if any(charge.mechanism is not None and charge.id is None for charge in charges):
            raise PrivacyError("a charge for noise names the attempt that it pays for")
        if any(charge.policy != self._log.policy for charge in charges):
            raise Refusal("policy-changed", "another policy was signed while the answer was made: ask again")
        charged = {row.charge.key for row in rows}
        return [charge for charge in charges if charge.key not in charged]

    def _mend(self, rows: Sequence[LedgerRow], writer: EntryWriter) -> None:
        """Log what was charged and has no entry: nothing left for it, or the node was killed between."""
        logged = len(self._log.row_hashes)
        self._verify(rows, max(0, logged - 1))  # the hash of a row is over all before it
        for row in rows[logged:]:
            writer.charged(row, _spending(rows[: row.number], row))

    def _verify(self, rows: Sequence[LedgerRow], start: int) -> None:
        logged = self._log.row_hashes
        if len(logged) > len(rows):
            raise LogError(f"the ledger has {len(rows)} rows, and the log shows {len(logged)}: it was rolled back")
        for row, digest in zip(rows[start:], logged[start:], strict=False):
            if row.hash != digest:
                raise LogError(f"row {row.number} of the ledger is another than the log shows: one of them was changed")


def _spending(rows: Sequence[LedgerRow], row: LedgerRow) -> Spending:
    """Of the data set that a row is about."""
    return Spending.select(rows, row.charge.data_set, row.charge.commitment)
