"""The reply to the server when no answer leaves: one error, constant in code, text and size, whatever the reason.

Once records were used, everything about a failure can depend on them: that it happened, its kind, its message, a number
in it. The reason stays in the site's own log.
"""

from typing import Final

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedglm.core.errors import FedglmError

NO_ANSWER: Final = "the site gives no answer: its own log says why"
"""Text of the reply."""


class Withheld(FedglmError):
    """No answer may leave after records were used; the cause holds the reason, and stays at the site."""


def make_no_answer(message: Message) -> Message:
    """Make the constant error reply to a message."""
    return Message(Error(int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), NO_ANSWER), reply_to=message)
