"""What the server is told when no answer leaves: one reply, constant in code, text and size, whatever the reason.

Once records were looked at, everything about a failure can follow from them: that there is one, its kind, its words, a
number in them. What went wrong stays in the site's own log.
"""

from typing import Final

from flwr.app import Error, Message
from flwr.common.constant import ErrorCode

from fedglm.core.errors import FedglmError

NO_ANSWER: Final = "the site gives no answer: its own log says why"


class Withheld(FedglmError):
    """No answer may leave after records were looked at; the cause says why, and stays at the site."""


def no_answer(message: Message) -> Message:
    """The constant reply."""
    return Message(Error(int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION), NO_ANSWER), reply_to=message)
