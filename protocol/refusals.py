"""How a refusal travels: in Flower's error, which holds a number and a text, and no fields.

The number says that it is a refusal. The text is `Refusal`'s own, for a server that is not ours to show; ours takes the
rule out of it here, and nowhere else looks at it.
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
    """What a node says when it refuses.

    Attributes:
        rule: Name of the rule of the site's policy; None where the node names none.
        text: For people; whatever a node likes to say.
    """

    rule: str | None
    text: str


def to_error(refusal: Refusal) -> Error:
    """The error that carries a refusal."""
    return Error(_REFUSED, str(refusal))


def read_refusal(error: Error) -> RefusedReply | None:
    """The refusal that an error carries, from a stranger too; None where it is another error."""
    if error.code != _REFUSED:
        return None
    text = str(error.reason or "")
    named = _RULE.match(text)
    return RefusedReply(named[1] if named else None, text)
