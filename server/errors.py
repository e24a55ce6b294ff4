"""What goes wrong with a project: the folder of a server, its certificates, its sites, its SuperLink."""

from fedglm.core.errors import FedglmError


class ProjectError(FedglmError, RuntimeError):
    """A project cannot be made, read or run as asked; the message names the thing and the remedy."""


class AwayError(ProjectError):
    """The SuperLink does not answer."""
