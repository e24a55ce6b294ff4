"""Errors of a project: a server's folder, its certificates, its sites, its SuperLink."""

from fedglm.core.errors import FedglmError


class ProjectError(FedglmError, RuntimeError):
    """A project cannot be made, read or run as requested; the message names the cause and the remedy."""


class UnreachableError(ProjectError):
    """The SuperLink does not respond."""
