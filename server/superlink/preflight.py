"""What stands in the way of a SuperLink, found before it starts: each with what helps."""

import datetime
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fedglm.privacy.errors import PrivacyError
from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import WARNING_DAYS, check_chain, read_certificate
from fedglm.server.project.enrolment import enrolled_sites
from fedglm.server.project.folder import Project
from fedglm.server.project.private_keys import check_private

MIN_FREE_BYTES = 256 * 2**20
ROOMY_FREE_BYTES = 2 * 2**30

_CLOSING_S = 2.0
"""How long the ports of a process that was killed may stay open: until the last of its threads has ended."""

_FUTURE = datetime.timedelta(minutes=5)


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        text: What, and what helps.
        is_fatal: Whether the SuperLink cannot start, or no site would trust it.
    """

    text: str
    is_fatal: bool


def check(project: Project) -> list[Finding]:
    """All that is found before a start, the fatal first."""
    steps: list[Callable[[Project], Iterator[Finding]]] = [
        _clock,
        _keys,
        certificate_findings,
        _sites,
        _disk,
        _ports,
    ]
    found = []
    for step in steps:
        try:
            found += list(step(project))
        except (ProjectError, PrivacyError, OSError) as exc:
            found.append(Finding(str(exc), is_fatal=True))
    return sorted(found, key=lambda finding: not finding.is_fatal)


def certificate_findings(project: Project) -> Iterator[Finding]:
    """What is wrong with the server's certificate and the authority, or will be within a month.

    Raises:
        ProjectError: A file is missing, damaged, or does not belong to the others.
    """
    check_chain(project.certificate, project.server_key, project.authority)
    now = datetime.datetime.now(datetime.UTC)
    renew = f"fedglm provision {project.folder} --renew"
    found = read_certificate(project.certificate)
    if found.begins > now:
        yield Finding(
            f"the server's certificate begins on {found.begins:%Y-%m-%d %H:%M} UTC: is the clock right?", True
        )
    if found.ends <= now:
        yield Finding(f"the server's certificate ended on {found.ends:%Y-%m-%d}: run {renew}", is_fatal=True)
    elif found.days_left(now) < WARNING_DAYS:
        yield Finding(f"the server's certificate ends on {found.ends:%Y-%m-%d}: run {renew}", is_fatal=False)
    if missing := [host for host in project.settings.hosts if host not in found.hosts]:
        yield Finding(f"the server's certificate is not for {', '.join(missing)}: run {renew}", is_fatal=True)
    authority = read_certificate(project.authority)
    if authority.days_left(now) < WARNING_DAYS:
        yield Finding(
            f"the authority ends on {authority.ends:%Y-%m-%d}, and with it the sites' trust: make a new project, and "
            "hand out its kits",
            is_fatal=authority.ends <= now,
        )


def _clock(project: Project) -> Iterator[Finding]:
    now = datetime.datetime.now(datetime.UTC)
    newest = max(
        (path for path in (project.database, project.authority, project.certificate) if path.exists()),
        key=lambda path: path.stat().st_mtime,
        default=None,
    )
    if newest is not None:
        written = datetime.datetime.fromtimestamp(newest.stat().st_mtime, datetime.UTC)
        if written > now + _FUTURE:
            yield Finding(
                f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, yet {newest.name} was written on "
                f"{written:%Y-%m-%d %H:%M}: set the clock by a time server; nodes with another time are turned away",
                is_fatal=True,
            )


def _keys(project: Project) -> Iterator[Finding]:
    _ = project.signing_key  # loading it checks its rights
    check_private(project.server_key)
    if project.authority_key.exists():  # its owner may keep it elsewhere
        check_private(project.authority_key)
    if project.state.stat().st_mode & 0o077:
        yield Finding(f"others than its owner may look into {project.state}: run chmod 700 {project.state}", True)


def _sites(project: Project) -> Iterator[Finding]:
    if not enrolled_sites(project):
        yield Finding("no site is enrolled yet: run fedglm server enrol SITE.pub for each", is_fatal=False)


def _disk(project: Project) -> Iterator[Finding]:
    free = shutil.disk_usage(project.folder).free
    if free < ROOMY_FREE_BYTES:
        yield Finding(
            f"{free / 2**20:.0f} MiB are free on the disk of {project.folder}: the SuperLink keeps every update until "
            "its round ends; free some space",
            is_fatal=free < MIN_FREE_BYTES,
        )


def _ports(project: Project) -> Iterator[Finding]:
    settings = project.settings
    deadline = time.monotonic() + _CLOSING_S
    for host, port in ((settings.listen, settings.port), ("127.0.0.1", settings.control_port)):
        while (error := _port_error(host, port)) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        if error is not None:
            yield Finding(
                f"port {port} at {host} cannot be opened ({error}): end what holds it (ss -ltnp), or run "
                f"fedglm provision {project.folder} --port N --control-port N",
                is_fatal=True,
            )


def _port_error(host: str, port: int) -> str | None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind((host, port))
            made.listen()
        except OSError as exc:
            return str(exc.strerror)
    return None
