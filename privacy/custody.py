"""A site's custody of its data: its key, what it permits, and what has left so far, in one folder at its node.

    site.key         Ed25519, readable by its owner alone: signs the policy
    policy.toml      what may leave, and beside it policy.toml.sig
    ledger.sqlite    what has left, and what that spent
    salt             keeps the data set's name in the ledger from being tried out
    refusals.jsonl   what was refused, and by which rule

`establish` makes it, once; without it nothing leaves.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedglm.privacy.charges import Budget
from fedglm.privacy.commitment import Field, commitment, site_salt
from fedglm.privacy.durable import write_atomically
from fedglm.privacy.errors import PolicyError
from fedglm.privacy.keys import SigningKey
from fedglm.privacy.ledger import Ledger
from fedglm.privacy.policy import Policy, load_policy, sign_policy
from fedglm.privacy.refusal_log import RefusalLog

KEY, POLICY, LEDGER, SALT, REFUSALS = "site.key", "policy.toml", "ledger.sqlite", "salt", "refusals.jsonl"


@dataclass(frozen=True)
class Custody:
    """The folder, opened and verified.

    Attributes:
        policy: What may leave, signed by the site's key.
        ledger: What has left.
        refusals: Where refusals are written.
        commitment: Name of the content of the site's data set, for the ledger.
        unit: Whose privacy is at stake in these data: "record", or the field that says whose a record is.
    """

    policy: Policy
    ledger: Ledger
    refusals: RefusalLog
    commitment: str
    unit: str

    @classmethod
    def open(cls, folder: Path, records: Iterable[Iterable[Field]], *, unit: str) -> "Custody":
        """Read and verify everything.

        Args:
            folder: Where `establish` made it.
            records: The data set, each record the fields of it; nothing of them is kept.
            unit: See above.

        Raises:
            PolicyError: There is no policy, or the site's key did not sign it.
            LedgerError: There is no ledger, or it is damaged.
            PrivacyError: Key or salt cannot be used.
        """
        if not (folder / KEY).is_file():
            raise PolicyError(f"{folder} holds no {KEY}: establish the site before it takes part")
        policy = load_policy(folder / POLICY, SigningKey.load(folder / KEY).public)
        ledger = Ledger(folder / LEDGER)
        name = commitment(records, site_salt(folder / SALT))
        return cls(policy, ledger, RefusalLog(folder / REFUSALS), name, unit)

    @property
    def budget(self) -> Budget | None:
        """What the data set may spend for life; None where the policy sets no limit, and so permits no noised plan."""
        policy = self.policy
        return None if policy.epsilon is None or policy.delta is None else Budget(policy.epsilon, policy.delta)


def establish(folder: Path, policy: Policy) -> None:
    """Make the folder of a new site: a key, the policy signed with it, and an empty ledger.

    What a killed process has made of it already is taken up.

    Raises:
        LedgerError: The site is there already; its ledger must not be forgotten.
        StorageError: A file cannot be written.
    """
    key_path = folder / KEY
    key = SigningKey.load(key_path) if key_path.exists() else SigningKey.create(key_path)
    write_atomically(folder / POLICY, policy.to_toml())
    sign_policy(folder / POLICY, key)
    site_salt(folder / SALT)
    Ledger.create(folder / LEDGER)  # the last: a folder with a ledger is whole


def is_established(folder: Path) -> bool:
    """Whether `establish` has been through."""
    return (folder / LEDGER).exists()
