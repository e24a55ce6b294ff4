"""`project.toml`: addresses of a federation's server, and the maximum size of its database."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedglm.core.validation_errors import explain
from fedglm.privacy.keys.site_identity import check_site_name
from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import parse_host

DEFAULT_PORT = 8443


def _parse_address(text: str) -> str:
    host = parse_host(text)
    if not any(mark in host for mark in ".:"):
        raise ProjectError(f"listen = {text!r}: give an IP address of this machine, or 0.0.0.0 for all")
    return host


class ProjectSettings(BaseModel):
    """Content of `project.toml`.

    Attributes:
        name: Name of the federation.
        hosts: DNS names and IP addresses under which the sites connect to the server; startup kits contain the first.
        port: Port for the sites.
        control_port: Port for this machine only, to start runs and register nodes.
        listen: Address of this machine on which the sites' port is opened; 0.0.0.0 for all.
        max_database_bytes: Maximum size of the SuperLink's database, which stores messages until they are pulled.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(check_site_name)]
    hosts: tuple[Annotated[str, AfterValidator(parse_host)], ...] = Field(min_length=1, max_length=100)
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)
    control_port: int = Field(default=DEFAULT_PORT + 1, ge=1, le=65535)
    listen: Annotated[str, AfterValidator(_parse_address)] = "0.0.0.0"  # noqa: S104 - the sites are elsewhere
    max_database_bytes: int = Field(default=4 * 2**30, ge=64 * 2**20)

    @model_validator(mode="after")
    def _check_ports(self) -> Self:
        if self.port == self.control_port:
            raise ValueError(f"port and control_port are both {self.port}: the sites must not reach the latter")
        return self

    @property
    def address(self) -> str:
        """Address of the server for sites: HOST:PORT."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def control_address(self) -> str:
        """Address of the server for this machine: 127.0.0.1:PORT."""
        return f"127.0.0.1:{self.control_port}"


def parse_settings(values: dict[str, Any], *, origin: str = "the project") -> ProjectSettings:
    """Validate settings from a `project.toml` or a command's options.

    Args:
        values: Settings by name.
        origin: Source of the settings, for errors.

    Raises:
        ProjectError: A key or value is invalid; similar keys are listed.
        PrivacyError: The name is not a valid name of a federation.
    """
    try:
        return ProjectSettings.model_validate(values)
    except ValidationError as exc:
        raise ProjectError(f"{origin}: {explain(exc, ProjectSettings, show=lambda _: None)}") from exc
