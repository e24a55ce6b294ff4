"""What goes wrong with privacy. On doubt nothing leaves the node.

    PrivacyError
    ├── Refusal        a rule of the node forbids it
    ├── LedgerError    the ledger is damaged, was rolled back, or cannot be written
    ├── LogError       the signed log is damaged, contradicts the ledger, or cannot be written
    └── PolicyError    the policy is malformed, unsigned, or signed by another key

Files that cannot be written are `StorageError` (`core/files.py`).
"""

from fedglm.core.errors import FedglmError


class PrivacyError(FedglmError, RuntimeError):
    """A promise cannot be made or kept; the message says why in one clear sentence."""


class Refusal(PrivacyError):
    """A rule of the node forbids what was asked; nothing left.

    Attributes:
        rule: Short name of the rule that was broken.
        reason: Why, in words that may be told to the server: settings and what the server itself sent.
    """

    def __init__(self, rule: str, reason: str) -> None:
        super().__init__(f"refused by rule {rule}: {reason}")
        self.rule = rule
        self.reason = reason

    def __reduce__(self) -> tuple[type["Refusal"], tuple[str, str]]:
        return type(self), (self.rule, self.reason)


class LedgerError(PrivacyError):
    """The privacy ledger is damaged, was rolled back, or cannot be read or written; nothing may be released."""


class LogError(PrivacyError):
    """The signed log is damaged, was cut, contradicts the ledger, or cannot be written; nothing may be released."""


class PolicyError(PrivacyError):
    """The node's policy is malformed, unsigned, or signed by another key; nothing may be released."""
