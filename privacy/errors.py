"""Errors of privacy. In case of doubt nothing leaves the node.

    PrivacyError
    ├── Refusal        a rule of the node forbids the request
    ├── LedgerError    the ledger is damaged, was rolled back, or cannot be written
    ├── LogError       the signed log is damaged, contradicts the ledger, or cannot be written
    ├── PolicyError    the policy is malformed, unsigned, or signed by another key
    └── SealError      encrypted content was sealed by another key or under another name, or was changed

Failed writes of files are `StorageError` (`core/files.py`).
"""

from fedglm.core.errors import FedglmError


class PrivacyError(FedglmError, RuntimeError):
    """A privacy guarantee cannot be given or kept; the message gives the reason in one sentence."""


class Refusal(PrivacyError):
    """A rule of the node forbids the request; nothing left the node.

    Attributes:
        rule: Short name of the broken rule.
        reason: Reason in words that may be sent to the server: only settings, and content that the server itself sent.
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
    """The signed log is damaged or truncated, contradicts the ledger, or cannot be written; nothing may be released."""


class PolicyError(PrivacyError):
    """The node's policy is malformed, unsigned, or signed by another key; nothing may be released."""


class SealError(PrivacyError):
    """Encrypted content was sealed by another key or under another name, or was changed; it is not decrypted."""
