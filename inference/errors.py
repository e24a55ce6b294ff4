"""Errors of a model in use."""

from fedglm.core.errors import FedglmError


class InferenceError(FedglmError, ValueError):
    """A model, a release or an input that cannot be used; the message names it and the remedy."""


class QueueFullError(InferenceError):
    """A batcher holds as many waiting requests as it may; the same request may be accepted later."""


class BatcherClosedError(InferenceError):
    """A batcher was closed before it could serve the request."""
