"""What a user is told when something goes wrong: one line that names the thing and the remedy.

All that a user can cause or mend is a `FedglmError` (`core/errors.py` draws the tree) or one of the operating system's,
and only here are they caught.
"""

import click

from fedglm.core.errors import FedglmError
from fedglm.core.files import is_disk_full

INTERRUPTED = 130
"""Exit code after Ctrl-C."""
MISTAKEN = 2
"""Exit code where the command line, the machine or its settings are not as they must be."""


def explain(exc: BaseException) -> tuple[str, int] | None:
    """The line and the exit code for an error that a user can cause or mend; None for a bug, which keeps its traceback.

    Args:
        exc: Exception that reached the command.
    """
    if isinstance(exc, click.ClickException):
        return exc.format_message(), MISTAKEN
    if isinstance(exc, FedglmError):
        return " ".join(str(exc).split()), exc.exit_code
    if isinstance(exc, OSError) and is_disk_full(exc):
        place = exc.filename or "temporary files"
        return f"the disk is full ({place}): free some space, then go on with --resume", MISTAKEN
    if isinstance(exc, PermissionError):
        return f"not allowed: {exc}", MISTAKEN
    return None
