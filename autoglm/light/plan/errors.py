"""Errors of making a model light."""

from fedglm.autoglm.errors import ModelError


class LightenError(ModelError):
    """A goal, a plan or a model that cannot be worked with; the message names it and the remedy."""
