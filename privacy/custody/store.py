"""The custody folder of a site, for its owner only: key, policy, ledger and logs of the site's data.

    site.key         Ed25519 key, readable by its owner only: signs the policy
    policy.toml      the policy, and beside it its signature, policy.toml.sig
    ledger.sqlite    all releases and their charges
    salt             salt of the commitment to the data set, against tests of its content
    refusals.jsonl   refusals, and their rules
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
from fedglm.privacy.custody.remaining_budget import choose_noise_for_remaining_budget
from fedglm.privacy.custody.site_log import CustodyLog, Release, create_log
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
"""Name of the folder, within the node's folder."""

KEY, POLICY, LEDGER, SALT = "site.key", "policy.toml", "ledger.sqlite", "salt"
REFUSALS = "refusals.jsonl"


@dataclass(frozen=True)
class Custody:
    """An opened and verified custody folder.

    Attributes:
        policy: Policy of the site, signed by its key.
        ledger: Privacy ledger of the site.
        refusals: Log of refusals, with reasons.
        log: Signed log of all events.
        key: Key of the site.
        unit: Privacy unit of the data: "record", or the field with the owner of a record.
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
        """Commitment to the content of the site's data set, for the ledger; the first access reads the records.

        Raises:
            DataError: The records cannot be read.
        """
        return self._commit()

    @classmethod
    def open(cls, folder: Path, records: Callable[[], Iterable[Iterable[Field]]], *, unit: str) -> "Custody":
        """Read and verify everything.

        Args:
            folder: Folder that `initialize` made.
            records: Returns the records of the data set, each as its fields. It is called only when the ledger needs
                the commitment, so that plans are checked against the policy before any record is read.
            unit: Privacy unit of the data, see above.

        Raises:
            PolicyError: There is no policy, or the site's key did not sign it.
            LedgerError: There is no ledger, or it is damaged.
            LogError: There is no log, it is damaged, or it and the ledger contradict each other.
            PrivacyError: Key or salt cannot be used, or others may look into the folder, and that cannot be changed.
        """
        if not (folder / KEY).is_file():
            raise PolicyError(f"{folder} holds no {KEY}: establish the site before it takes part")
        make_private_folder(folder)  # earlier versions made it readable by others
        key = SigningKey.load(folder / KEY)
        policy = load_policy(folder / POLICY, key.public)
        ledger, log = Ledger(folder / LEDGER), CustodyLog(folder / LOG, key)
        transaction = ReleaseTransaction(ledger, log)
        transaction.verify()
        transaction.activate_policy(policy)
        salt = load_salt(folder / SALT)
        refusals = RefusalLog(folder / REFUSALS)
        return cls(policy, ledger, refusals, log, key, unit, lambda: compute_commitment(records(), salt))

    @contextlib.contextmanager
    def log_refusals(self, run: str, server_round: int) -> Iterator[None]:
        """Record a refusal that the block raises, and raise it again.

        The log of refusals has its reason, the signed log only its rule. All refusals of a site pass here, and
        `RefusalLog.summary` counts them.
        """
        try:
            yield
        except Refusal as refusal:
            entry = self.refusals.record(refusal, run=run, round_number=server_round)
            self.log.record_refusal(entry.rule, entry.run or "-", server_round)
            raise

    def choose_mechanism(self, plan: RunPlan) -> Mechanism | None:
        """Choose the mechanism of this site's updates in a run: the plan's, or with more noise where budget is short.

        It does not depend on the records, so the noise may be made public.
        """
        budget = self._budget(plan.spec.noise.mechanism)
        if plan.spec.noise.mechanism is None or budget is None:
            return plan.spec.noise.mechanism
        return choose_noise_for_remaining_budget(
            plan, self.ledger.spending(self.policy.data_set, self.commitment), budget
        )

    def make_charge(
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
        """Make the charge for a release.

        Args:
            run: Identity of the run.
            server_round: Number of the round.
            mechanism: Mechanism of the noise; None for no noise.
            plan: SHA-256 (hex) of the run's plan.
            release: SHA-256 (hex) of the bytes that leave.
            purpose: Purpose, one of `privacy.log.entries.PURPOSES`.
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
        """Refuse in advance what `charge` would refuse for its budget.

        Raises:
            Refusal: Rule `epsilon-budget`.
        """
        self._transaction.check_budget(self._budget(charges[0].mechanism), charges)

    def charge(self, *releases: Release) -> None:
        """Charge the ledger for all releases of a message, except for attempts that were charged before.

        Raises:
            Refusal: Rule `epsilon-budget`, or `policy-changed`.
            LedgerError, LogError: A charge or entry could not be written.
        """
        self._transaction.charge(self._budget(releases[0].charge.mechanism), releases)

    def charge_failed(self, *charges: Charge) -> None:
        """Charge the ledger for an attempt of which nothing leaves: its noise was added to data all the same.

        Raises:
            Refusal, LedgerError, LogError: It could not be charged; then nothing could have left either.
        """
        self._transaction.charge_failed(self._budget(charges[0].mechanism), charges)

    @property
    def _transaction(self) -> ReleaseTransaction:
        return ReleaseTransaction(self.ledger, self.log)

    def _budget(self, mechanism: Mechanism | None) -> Budget | None:
        """Return the budget of the data set; None where the policy sets no limit, and so permits no noised plan."""
        policy = self.policy
        # A site that permits updates without noise has no budget; the ledger records them all the same.
        if mechanism is None or policy.epsilon is None or policy.delta is None:
            return None
        return Budget(policy.epsilon, policy.delta)


def initialize(folder: Path, policy: Policy, *, name: str | None = None) -> None:
    """Make the custody folder of a new site: a key, the policy signed with it, a log, and an empty ledger.

    A folder that a killed process left incomplete is completed.

    Args:
        folder: Path of the new folder.
        policy: Policy of the site.
        name: Name of the site; None takes that of its data set.

    Raises:
        LedgerError: The site exists already; its ledger must not be forgotten.
        StorageError: A file cannot be written.
    """
    make_private_folder(folder)
    key_path = folder / KEY
    key = SigningKey.load(key_path) if key_path.exists() else SigningKey.create(key_path)
    write_atomically(folder / POLICY, policy.to_toml())
    sign_policy(folder / POLICY, key)
    load_salt(folder / SALT)
    if not (folder / LOG).exists():
        create_log(folder / LOG, key, name or policy.data_set)
    Ledger.create(folder / LEDGER)  # the last: a folder with a ledger is complete


def is_initialized(folder: Path) -> bool:
    """Return whether `initialize` has completed."""
    return (folder / LEDGER).exists()
