"""Errors of the demo."""

from fedglm.core.errors import FedglmError


class DemoError(FedglmError, RuntimeError):
    """The demo cannot start, or one of its commands failed; the message names the command and the log to read."""
