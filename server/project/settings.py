"""`project.toml`: where a federation's server is reached, and how much it may store."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedglm.core.validation_errors import explain
from fedglm.privacy.keys.site_identity import check_site_name
from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import checked_host

DEFAULT_PORT = 8443


def _checked_address(text: str) -> str:
    host = checked_host(text)
    if not any(mark in host for mark in ".:"):
        raise ProjectError(f"listen = {text!r}: give an IP address of this machine, or 0.0.0.0 for all")
    return host


class ProjectSettings(BaseModel):
    """`project.toml`.

    Attributes:
        name: Of the federation.
        hosts: DNS names and IP addresses under which the sites reach the server; the first one stands in the kits.
        port: Where the sites reach it.
        control_port: Where this machine alone reaches it, to start runs and register sites.
        listen: Address of this machine that the sites' port is opened on; 0.0.0.0 for all.
        max_database_bytes: How large the SuperLink's database may become; messages lie there until they are taken up.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, AfterValidator(check_site_name)]
    hosts: tuple[Annotated[str, AfterValidator(checked_host)], ...] = Field(min_length=1, max_length=100)
    port: int = Field(default=DEFAULT_PORT, ge=1, le=65535)
    control_port: int = Field(default=DEFAULT_PORT + 1, ge=1, le=65535)
    listen: Annotated[str, AfterValidator(_checked_address)] = "0.0.0.0"  # noqa: S104 - the sites are elsewhere
    max_database_bytes: int = Field(default=4 * 2**30, ge=64 * 2**20)

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.port == self.control_port:
            raise ValueError(f"port and control_port are both {self.port}: the sites must not reach the latter")
        return self

    @property
    def address(self) -> str:
        """Where a site finds the server: HOST:PORT."""
        host = self.hosts[0]
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def control_address(self) -> str:
        """Where this machine finds it: 127.0.0.1:PORT."""
        return f"127.0.0.1:{self.control_port}"


def checked_settings(values: dict[str, Any], *, origin: str = "the project") -> ProjectSettings:
    """The settings in `values`, as a `project.toml` or a command's options give them.

    Raises:
        ProjectError: A key or value is wrong; near names are listed.
        PrivacyError: The name cannot name a federation.
    """
    try:
        return ProjectSettings.model_validate(values)
    except ValidationError as exc:
        raise ProjectError(f"{origin}: {explain(exc, ProjectSettings, show=lambda _: None)}") from exc
