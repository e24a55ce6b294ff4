"""Checks before a SuperLink starts."""

import datetime
import shutil
import socket
import time
from collections.abc import Callable, Iterator

from fedglm.core.findings import Finding, failure, warning
from fedglm.privacy.errors import PrivacyError
from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import WARNING_DAYS, check_chain, read_certificate
from fedglm.server.project.enrolment import read_enrolled_sites
from fedglm.server.project.folder import Project
from fedglm.server.project.private_keys import check_private

MIN_FREE_BYTES = 256 * 2**20
RECOMMENDED_FREE_BYTES = 2 * 2**30

_PORT_RELEASE_S = 2.0
"""Maximum seconds that the ports of a killed process stay open: until the last of its threads has ended."""

_MAX_CLOCK_ERROR = datetime.timedelta(minutes=5)


def check(project: Project) -> list[Finding]:
    """Run all checks; return warnings and failures, the warnings first."""
    steps: list[tuple[str, Callable[[Project], Iterator[Finding]]]] = [
        ("clock", _check_clock),
        ("keys", _check_keys),
        ("certificate", check_certificates),
        ("sites", _check_sites),
        ("disk", _check_disk),
        ("ports", _check_ports),
    ]
    findings = []
    for name, step in steps:
        try:
            findings += list(step(project))
        except (ProjectError, PrivacyError, OSError) as exc:
            findings.append(failure(name, str(exc)))
    return sorted(findings, key=lambda finding: finding.level == "failure")


def check_certificates(project: Project) -> Iterator[Finding]:
    """Check the server's certificate and the authority, now and for the next month.

    Raises:
        ProjectError: A file is missing, damaged, or does not belong to the others.
    """
    check_chain(project.certificate, project.server_key, project.authority)
    now = datetime.datetime.now(datetime.UTC)
    name, renew = "certificate", f"run fedglm provision {project.folder} --renew"
    certificate = read_certificate(project.certificate)
    if certificate.begins > now:
        detail = f"the server's certificate begins on {certificate.begins:%Y-%m-%d %H:%M} UTC"
        yield failure(name, detail, "is the clock right?")
    if certificate.ends <= now:
        yield failure(name, f"the server's certificate ended on {certificate.ends:%Y-%m-%d}", renew)
    elif certificate.days_left(now) < WARNING_DAYS:
        yield warning(name, f"the server's certificate ends on {certificate.ends:%Y-%m-%d}", renew)
    if missing := [host for host in project.settings.hosts if host not in certificate.hosts]:
        yield failure(name, f"the server's certificate is not for {', '.join(missing)}", renew)
    authority = read_certificate(project.authority)
    if authority.days_left(now) < WARNING_DAYS:
        level = failure if authority.ends <= now else warning
        yield level(
            "authority",
            f"the authority ends on {authority.ends:%Y-%m-%d}, and with it the sites' trust",
            "make a new project, and hand out its kits",
        )


def _check_clock(project: Project) -> Iterator[Finding]:
    now = datetime.datetime.now(datetime.UTC)
    newest = max(
        (path for path in (project.database, project.authority, project.certificate) if path.exists()),
        key=lambda path: path.stat().st_mtime,
        default=None,
    )
    if newest is not None:
        written = datetime.datetime.fromtimestamp(newest.stat().st_mtime, datetime.UTC)
        if written > now + _MAX_CLOCK_ERROR:
            yield failure(
                "clock",
                f"this machine's clock says {now:%Y-%m-%d %H:%M} UTC, yet {newest.name} was written on "
                f"{written:%Y-%m-%d %H:%M}",
                "set the clock by a time server; nodes with another time are turned away",
            )


def _check_keys(project: Project) -> Iterator[Finding]:
    _ = project.signing_key  # loading it checks its permissions
    check_private(project.server_key)
    if project.authority_key.exists():  # its owner may keep it elsewhere
        check_private(project.authority_key)
    if project.state.stat().st_mode & 0o077:
        detail = f"others than its owner may look into {project.state}"
        yield failure("keys", detail, f"run chmod 700 {project.state}")


def _check_sites(project: Project) -> Iterator[Finding]:
    if not read_enrolled_sites(project):
        yield warning("sites", "no site is enrolled yet", "run fedglm server enrol SITE.pub for each")


def _check_disk(project: Project) -> Iterator[Finding]:
    free = shutil.disk_usage(project.folder).free
    if free < RECOMMENDED_FREE_BYTES:
        level = failure if free < MIN_FREE_BYTES else warning
        yield level(
            "disk",
            f"{free / 2**20:.0f} MiB are free on the disk of {project.folder}",
            "the SuperLink keeps every update until its round ends; free some space",
        )


def _check_ports(project: Project) -> Iterator[Finding]:
    settings = project.settings
    deadline = time.monotonic() + _PORT_RELEASE_S
    for host, port in ((settings.listen, settings.port), ("127.0.0.1", settings.control_port)):
        while (error := _try_port(host, port)) is not None and time.monotonic() < deadline:
            time.sleep(0.05)
        if error is not None:
            yield failure(
                "ports",
                f"port {port} at {host} cannot be opened ({error})",
                f"end what holds it (ss -ltnp), or run fedglm provision {project.folder} --port N --control-port N",
            )


def _try_port(host: str, port: int) -> str | None:
    """Return why a port cannot be opened; None if it can."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((host, port))
            bound.listen()
        except OSError as exc:
            return str(exc.strerror)
    return None
