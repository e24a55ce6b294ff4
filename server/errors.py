"""Errors of a project: the folder of a server, its certificates, its sites, its SuperLink."""

from fedglm.core.errors import FedglmError


class ProjectError(FedglmError, RuntimeError):
    """A project cannot be created, read or run as requested; the message names the cause and a remedy."""


class AwayError(ProjectError):
    """The SuperLink does not respond."""
