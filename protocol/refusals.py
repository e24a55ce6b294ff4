"""Encoding of a refusal in Flower's error, which has a code and a text, and no fields.

The code marks a refusal. The text is that of `Refusal`, so that any Flower server can display it; ours parses the rule
from it here, and no other code reads it.
"""

import re
from dataclasses import dataclass
from typing import Final

from flwr.app import Error
from flwr.common.constant import ErrorCode

from fedglm.privacy.errors import Refusal

_REFUSED: Final = int(ErrorCode.MOD_FAILED_PRECONDITION)
_RULE: Final = re.compile(r"refused by rule ([a-z][a-z0-9-]{0,63}):")


@dataclass(frozen=True)
class RefusedReply:
    """A node's refusal, as received.

    Attributes:
        rule: Name of the rule of the site's policy; None where the node names none.
        text: Untrusted text, for display.
    """

    rule: str | None
    text: str


def to_error(refusal: Refusal) -> Error:
    """Return the Flower error that carries a refusal."""
    return Error(_REFUSED, str(refusal))


def read_refusal(error: Error) -> RefusedReply | None:
    """Read the refusal from an untrusted error; None where it is another error."""
    if error.code != _REFUSED:
        return None
    text = str(error.reason or "")
    named = _RULE.match(text)
    return RefusedReply(named[1] if named else None, text)
