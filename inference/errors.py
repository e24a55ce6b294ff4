"""Errors of a model in use."""

from fedglm.core.errors import FedglmError


class InferenceError(FedglmError, ValueError):
    """A model, a release or an input that cannot be used; the message names it and the remedy."""
