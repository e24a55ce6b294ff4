"""The transaction of a release: budget, ledger, log, and only then the message leaves the site.

    1  the log is locked: other processes of the site wait
    2  rows that a killed process charged without an entry get one, `charged`
    3  the ledger checks the budget and is charged: durable on the disk
    4  the log gets a signed entry for each new row: durable on the disk, and unlocked
    5  the caller may release

Killed before 3, nothing has happened. Killed between 3 and 4, the charge remains without an entry, which the next
transaction writes first. So each row of the ledger has one entry in the log, in the same order, neither can be
truncated or rolled back without the other, and an anchor of the log is an anchor of both.
"""

from collections.abc import Sequence

from fedglm.privacy.custody.site_log import CustodyLog, EntryWriter, Release
from fedglm.privacy.errors import LogError, PrivacyError, Refusal
from fedglm.privacy.ledger.charges import Budget, Charge, LedgerRow
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.ledger.spending import Spending
from fedglm.privacy.policy.policy import Policy


class ReleaseTransaction:
    """Charges and logs releases in the ledger and log of one site; several processes may use them at once.

    Args:
        ledger: Ledger of the site.
        log: Log of the site.
    """

    def __init__(self, ledger: Ledger, log: CustodyLog) -> None:
        self._ledger, self._log = ledger, log

    def verify(self) -> None:
        """Verify that ledger and log agree.

        Raises:
            LogError: One of them was rolled back, or changed.
        """
        self._verify(self._ledger.rows(), 0)

    def activate_policy(self, policy: Policy) -> None:
        """Log that a policy is in force from now on, after the entries of all earlier charges.

        Raises:
            LogError: The entry could not be written, or ledger and log contradict each other.
        """
        if policy.sha256 == self._log.policy:
            return
        with self._log.writing() as writer:
            self._log_missing_entries(self._ledger.rows(), writer)
            writer.write_policy(policy)

    def check_budget(self, budget: Budget | None, charges: Sequence[Charge]) -> None:
        """Refuse in advance what `charge` would refuse for its budget, without writing.

        Raises:
            Refusal: Rule `epsilon-budget`.
        """
        first, *others = charges
        self._ledger.check_budget(first, budget, *others)

    def charge(self, budget: Budget | None, releases: Sequence[Release]) -> None:
        """Charge for the releases of a message, and log them; only when this returns may the message leave.

        A release whose attempt was charged before may leave again without a charge.

        Args:
            budget: Budget of the data set; None for no limit.
            releases: All releases of the message.

        Raises:
            Refusal: Rule `epsilon-budget`, or `policy-changed`: they were made under another policy than that in force.
            LedgerError, LogError: A charge or entry could not be written.
        """
        self._catch_up()
        with self._log.writing() as writer:  # other processes wait: charge and entry belong together
            uncharged = self._select_uncharged([each.charge for each in releases], writer)
            for each in releases:
                # Logged once, however often it is requested.
                if each.charge not in uncharged and each.charge.release not in self._log.resent:
                    writer.write_resend(each)
            if not uncharged:
                return
            head = self._ledger.charge(uncharged[0], budget, *uncharged[1:])
            rows = self._ledger.rows()[: head.rows]
            new = [each for each in releases if each.charge in uncharged]
            for release, row in zip(new, rows[-len(new) :], strict=True):
                # The releases of one message are spent together: each entry's epsilon includes all of them.
                writer.write_release(row, _select_spending(rows, row), release)

    def charge_failed(self, budget: Budget | None, charges: Sequence[Charge]) -> None:
        """Charge for an attempt of which nothing leaves, and log it; do nothing for one that was charged before.

        Args:
            budget: Budget of the data set; None for no limit.
            charges: All charges of the attempt.

        Raises:
            Refusal, LedgerError, LogError: As `charge`; nothing of the attempt could have left then.
        """
        self._catch_up()
        with self._log.writing() as writer:
            uncharged = self._select_uncharged(charges, writer)
            if uncharged:
                self._ledger.charge(uncharged[0], budget, *uncharged[1:])
                self._log_missing_entries(self._ledger.rows(), writer)

    def _catch_up(self) -> None:
        """Log missing entries in a write of their own, whatever happens to the next charge."""
        if len(rows := self._ledger.rows()) > len(self._log.row_hashes):
            with self._log.writing() as writer:
                self._log_missing_entries(rows, writer)

    def _select_uncharged(self, charges: Sequence[Charge], writer: EntryWriter) -> list[Charge]:
        """Select the charges that have no row yet, and check them."""
        rows = self._ledger.rows()
        self._log_missing_entries(rows, writer)
        if any(charge.mechanism is not None and charge.id is None for charge in charges):
            raise PrivacyError("a charge for noise names the attempt that it pays for")
        if any(charge.policy != self._log.policy for charge in charges):
            raise Refusal("policy-changed", "another policy was signed while the answer was made: ask again")
        charged = {row.charge.key for row in rows}
        return [charge for charge in charges if charge.key not in charged]

    def _log_missing_entries(self, rows: Sequence[LedgerRow], writer: EntryWriter) -> None:
        """Log the charges without an entry: nothing left for them, or the node was killed in between."""
        logged = len(self._log.row_hashes)
        self._verify(rows, max(0, logged - 1))  # the hash of a row covers all rows before it
        for row in rows[logged:]:
            writer.write_charge(row, _select_spending(rows[: row.number], row))

    def _verify(self, rows: Sequence[LedgerRow], start: int) -> None:
        logged = self._log.row_hashes
        if len(logged) > len(rows):
            raise LogError(f"the ledger has {len(rows)} rows, and the log shows {len(logged)}: it was rolled back")
        for row, digest in zip(rows[start:], logged[start:], strict=False):
            if row.hash != digest:
                raise LogError(f"row {row.number} of the ledger is another than the log shows: one of them was changed")


def _select_spending(rows: Sequence[LedgerRow], row: LedgerRow) -> Spending:
    """Return the spending of a row's data set."""
    return Spending.select(rows, row.charge.data_set, row.charge.commitment)
