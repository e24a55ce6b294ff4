"""A site's custody of its data: its key, what it permits, and what has left so far, in one folder, its owner's alone.

    site.key         Ed25519, readable by its owner alone: signs the policy
    policy.toml      what may leave, and beside it policy.toml.sig
    ledger.sqlite    what has left, and what that spent
    salt             keeps the data set's name in the ledger from being tried out
    refusals.jsonl   what was refused, and by which rule
    log.sqlite       all of this in order, signed by the site

`initialize` makes it, once; without it nothing leaves.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from fedglm.core.files import write_atomically
from fedglm.privacy.custody.refusal_log import RefusalLog
from fedglm.privacy.custody.remaining_budget import noise_for_remaining_budget
from fedglm.privacy.custody.site_log import CustodyLog, Release, open_log
from fedglm.privacy.custody.transaction import ReleaseTransaction
from fedglm.privacy.dp.mechanism import Mechanism
from fedglm.privacy.errors import PolicyError, Refusal
from fedglm.privacy.keys.private_files import make_private_folder
from fedglm.privacy.keys.signing import SigningKey
from fedglm.privacy.ledger.charges import Budget, Charge
from fedglm.privacy.ledger.commitment import Field, compute_commitment, load_salt
from fedglm.privacy.ledger.ledger import Ledger
from fedglm.privacy.log.signed_log import LOG
from fedglm.privacy.policy.policy import Policy
from fedglm.privacy.policy.policy_file import load_policy, sign_policy
from fedglm.privacy.policy.run_plan import RunPlan

FOLDER = "custody"
"""Name of the folder, within the node's."""

KEY, POLICY, LEDGER, SALT = "site.key", "policy.toml", "ledger.sqlite", "salt"
REFUSALS = "refusals.jsonl"


@dataclass(frozen=True)
class Custody:
    """The folder, opened and verified.

    Attributes:
        policy: What may leave, signed by the site's key.
        ledger: What has left.
        refusals: Where refusals are written.
        log: Where all that happens is written, and signed.
        key: The site's.
        unit: Whose privacy is at stake in these data: "record", or the field that says whose a record is.
    """

    policy: Policy
    ledger: Ledger
    refusals: RefusalLog
    log: CustodyLog
    key: SigningKey
    unit: str
    _commit: Callable[[], str] = field(repr=False)

    @cached_property
    def commitment(self) -> str:
        """Name of the content of the site's data set, for the ledger: the first look at it reads the records.

        Raises:
            DataError: They cannot be read.
        """
        return self._commit()

    @classmethod
    def open(cls, folder: Path, records: Callable[[], Iterable[Iterable[Field]]], *, unit: str) -> "Custody":
        """Read and verify everything.

        Args:
            folder: Where `initialize` made it.
            records: Gives the data set, each record the fields of it. It is not asked before the ledger needs to know
                what data it is about, so that plans are held to the policy before a record is looked at.
            unit: See above.

        Raises:
            PolicyError: There is no policy, or the site's key did not sign it.
            LedgerError: There is no ledger, or it is damaged.
            LogError: There is no log, it is damaged, or it and the ledger contradict each other.
            PrivacyError: Key or salt cannot be used, or others may look into the folder, and that cannot be changed.
        """
        if not (folder / KEY).is_file():
            raise PolicyError(f"{folder} holds no {KEY}: establish the site before it takes part")
        make_private_folder(folder)  # earlier versions left it open to look into
        key = SigningKey.load(folder / KEY)
        policy = load_policy(folder / POLICY, key.public)
        ledger, log = Ledger(folder / LEDGER), CustodyLog(folder / LOG, key)
        transaction = ReleaseTransaction(ledger, log)
        transaction.verify()
        transaction.put_in_force(policy)
        salt = load_salt(folder / SALT)
        refusals = RefusalLog(folder / REFUSALS)
        return cls(policy, ledger, refusals, log, key, unit, lambda: compute_commitment(records(), salt))

    @contextlib.contextmanager
    def logged(self, run: str, server_round: int) -> Iterator[None]:
        """Write a refusal in the block down before it goes on: in words for the site, by its rule in the signed log.

        All refusals of a site pass here, and `RefusalLog.summary` counts them.
        """
        try:
            yield
        except Refusal as refusal:
            entry = self.refusals.record(refusal, run=run, round_number=server_round)
            self.log.refused(entry.rule, entry.run or "-", server_round)
            raise

    def mechanism_for(self, plan: RunPlan) -> Mechanism | None:
        """How this site adds noise to its updates in a run: as the plan says, or with more where little budget is left.

        Nothing of it depends on the records, so that the noise may be told.
        """
        budget = self._budget(plan.spec.noise.mechanism)
        if plan.spec.noise.mechanism is None or budget is None:
            return plan.spec.noise.mechanism
        return noise_for_remaining_budget(plan, self.ledger.spending(self.policy.data_set, self.commitment), budget)

    def charge_of(
        self,
        run: str,
        server_round: int,
        mechanism: Mechanism | None,
        plan: str,
        release: str,
        *,
        purpose: str,
        attempt: str | None = None,
    ) -> Charge:
        """The charge for something that leaves.

        Args:
            run: Identity of the run.
            server_round: Number of the round.
            mechanism: How noise was added; None for none.
            plan: SHA-256 of the run's plan.
            release: SHA-256 of the bytes that leave.
            purpose: One of `privacy.log.entries.PURPOSES`.
            attempt: Id of the attempt whose noise this is; see `Charge`. None where there is no noise.
        """
        return Charge(
            data_set=self.policy.data_set,
            commitment=self.commitment,
            run=run,
            round=server_round,
            purpose=purpose,
            mechanism=mechanism,
            plan=plan,
            policy=self.policy.sha256,
            release=release,
            id=attempt,
        )

    def check_budget(self, *charges: Charge) -> None:
        """Refuse beforehand what `charge` would refuse for its budget.

        Raises:
            Refusal: Rule `epsilon-budget`.
        """
        self._transaction.check_budget(self._budget(charges[0].mechanism), charges)

    def charge(self, *releases: Release) -> None:
        """Charge the ledger for all that leaves in a message, but for attempts that have been charged before.

        Raises:
            Refusal: Rule `epsilon-budget`, or `policy-changed`.
            LedgerError, LogError: It could not be written down.
        """
        self._transaction.charge(self._budget(releases[0].charge.mechanism), releases)

    def charge_failed(self, *charges: Charge) -> None:
        """Charge the ledger for an attempt of which nothing leaves: its noise has met data all the same.

        Raises:
            Refusal, LedgerError, LogError: It could not be charged; then nothing could have left either.
        """
        self._transaction.charge_failed(self._budget(charges[0].mechanism), charges)

    @property
    def _transaction(self) -> ReleaseTransaction:
        return ReleaseTransaction(self.ledger, self.log)

    def _budget(self, mechanism: Mechanism | None) -> Budget | None:
        """What the data set may spend for life; None where the policy sets no limit, and so permits no noised plan."""
        policy = self.policy
        # A site that permits updates without noise has no budget to keep; the ledger remembers them all the same.
        if mechanism is None or policy.epsilon is None or policy.delta is None:
            return None
        return Budget(policy.epsilon, policy.delta)


def initialize(folder: Path, policy: Policy, *, name: str | None = None) -> None:
    """Make the folder of a new site: a key, the policy signed with it, an empty ledger, and a log.

    What a killed process has made of it already is taken up.

    Args:
        folder: New.
        policy: What the site permits.
        name: The site's; that of its data set without it.

    Raises:
        LedgerError: The site is there already; its ledger must not be forgotten.
        StorageError: A file cannot be written.
    """
    make_private_folder(folder)
    key_path = folder / KEY
    key = SigningKey.load(key_path) if key_path.exists() else SigningKey.create(key_path)
    write_atomically(folder / POLICY, policy.to_toml())
    sign_policy(folder / POLICY, key)
    load_salt(folder / SALT)
    if not (folder / LOG).exists():
        open_log(folder / LOG, key, name or policy.data_set)
    Ledger.create(folder / LEDGER)  # the last: a folder with a ledger is whole


def is_established(folder: Path) -> bool:
    """Whether `initialize` has been through."""
    return (folder / LEDGER).exists()
