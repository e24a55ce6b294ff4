"""Output of `fedglm server status`: values for machines, tables for people."""

import datetime
from dataclasses import asdict
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from fedglm.cli.process.daemon import Daemon
from fedglm.cli.terminal.tables import wide_console
from fedglm.privacy.errors import PrivacyError
from fedglm.run_folder.progress import is_run, read_view
from fedglm.server.deployment.submission import read_submissions
from fedglm.server.errors import ProjectError
from fedglm.server.project.certificates import read_certificate
from fedglm.server.project.enrolment import list_provisioned_sites, read_enrolled_sites, read_revoked_sites
from fedglm.server.project.folder import Project
from fedglm.server.superlink.control import Control, EnrolledNode
from fedglm.server.superlink.preflight import check_certificates

_MAX_RUNS = 10  # rows in the table, the newest

_COLOURS = {"online": "green", "offline": "yellow", "not enrolled": "yellow", "unregistered": "red"}


def describe_server(project: Project, daemon: Daemon) -> dict[str, Any]:
    """Return the state of a server, as values that JSON can represent.

    Raises:
        ProjectError: The certificate cannot be read.
        PrivacyError: The public keys of a site are damaged.
    """
    pid = daemon.pid()
    warnings: list[str] = []
    nodes: list[EnrolledNode] = []
    runs: list[dict[str, Any]] | None = None
    if pid is not None:
        try:
            with Control(project) as control:
                nodes, runs = control.list_nodes(), _list_runs(project, control)
        except ProjectError as exc:
            warnings.append(str(exc))
    certificate = read_certificate(project.certificate)
    try:
        warnings += [finding.sentence(": ") for finding in check_certificates(project)]
    except (ProjectError, PrivacyError) as exc:
        warnings.append(str(exc))
    return {
        "project": str(project.folder),
        "name": project.settings.name,
        "address": project.settings.address,
        "control_address": project.settings.control_address,
        "running": pid is not None,
        "pid": pid,
        "log": str(daemon.log),
        "certificate": {
            "ends": certificate.ends.isoformat(),
            "days_left": int(certificate.days_left()),
            "hosts": list(certificate.hosts),
        },
        "sites": _list_sites(project, nodes),
        "revoked": [
            {"name": identity.name, "made": identity.made, "fingerprints": identity.fingerprints}
            for identity in read_revoked_sites(project)
        ],
        "runs": _list_runs_in_folders(project) if runs is None else runs,
        "warnings": warnings,
    }


def _list_runs(project: Project, control: Control) -> list[dict[str, Any]]:
    """List the SuperLink's runs, each with the name of its folder; None for apps that others submitted."""
    folders = [path.name for path in project.runs.iterdir() if path.is_dir()]
    names = {number: name for name in folders for number in read_submissions(project, name)}
    return [{"name": names.get(run.run_id), **asdict(run)} for run in control.list_runs()]


def _list_runs_in_folders(project: Project) -> list[dict[str, Any]]:
    """List the runs by their folders, while the SuperLink does not answer; bytes are those of the updates alone."""
    runs = []
    for path in project.runs.iterdir():
        if path.is_dir() and is_run(path):
            view, numbers = read_view(path), read_submissions(project, path.name)
            status = "interrupted" if view.state == "running" else view.state
            runs.append(
                {
                    "name": path.name,
                    "run_id": numbers[-1] if numbers else None,
                    "status": status,
                    "started": view.began.isoformat() if view.began else "",
                    "uplink_bytes": view.traffic.uplink,
                    "downlink_bytes": view.traffic.downlink,
                }
            )
    return sorted(runs, key=lambda run: str(run["started"]), reverse=True)


def _list_sites(project: Project, nodes: list[EnrolledNode]) -> list[dict[str, Any]]:
    sites, by_key = read_enrolled_sites(project), {node.key: node for node in nodes}
    entries = []
    for name in sorted({*sites, *list_provisioned_sites(project)}):
        identity = sites.get(name)
        node = by_key.get(identity.flower) if identity else None
        entries.append(
            {
                "name": name,
                "status": node.status if node else "enrolled" if identity else "not enrolled",
                "enrolled": identity is not None,
                "node_id": node.node_id if node else None,
                "last_seen": node.last_seen.isoformat() if node and node.last_seen else None,
                "fingerprints": identity.fingerprints if identity else None,
            }
        )
    return entries


def print_status(status: dict[str, Any]) -> None:
    """Print the state of a server as tables."""
    console = wide_console()
    state = f"[green]runs[/green] as process {status['pid']}" if status["running"] else "[yellow]does not run[/yellow]"
    address = escape(status["address"])  # an IPv6 address has brackets
    console.print(f"[bold]{escape(status['name'])}[/bold]: the SuperLink {state}; sites reach it at {address}")
    certificate = status["certificate"]
    console.print(f"certificate until {certificate['ends'][:10]} ({certificate['days_left']} days)")
    sites = Table(box=box.SIMPLE_HEAD, title=f"sites, {len(status['sites'])} in all", title_justify="left")
    for heading in ("site", "status", "last seen", "node", "signing key"):
        sites.add_column(heading, overflow="fold")
    for site in status["sites"]:
        colour = _COLOURS.get(site["status"], "default")
        sites.add_row(
            escape(site["name"]),
            f"[{colour}]{site['status']}[/{colour}]",
            _format_age(site["last_seen"]),
            str(site["node_id"] or "-"),
            site["fingerprints"]["signing"][:19] if site["fingerprints"] else "-",
        )
    console.print(sites)
    if status["revoked"]:
        console.print(f"revoked: {', '.join(sorted(escape(site['name']) for site in status['revoked']))}")
    if status["runs"]:
        console.print(_build_run_table(status["runs"]))
    for warning in status["warnings"]:
        console.print(f"[yellow]note: {escape(warning)}[/yellow]", soft_wrap=True)


def _build_run_table(runs: list[dict[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=f"runs, {len(runs)} in all", title_justify="left")
    for heading in ("run", "status", "submitted", "up", "down"):
        table.add_column(heading, justify="right" if heading in ("up", "down") else "left", overflow="fold")
    for run in runs[:_MAX_RUNS]:
        sizes = [f"{run[key] / 1e6:.2f} MB" for key in ("uplink_bytes", "downlink_bytes")]
        name = escape(run["name"] or str(run["run_id"]))
        table.add_row(name, escape(run["status"]), run["started"][:16].replace("T", " "), *sizes)
    return table


def _format_age(moment: str | None) -> str:
    if moment is None:
        return "never"
    seconds = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(moment)).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now" if seconds < 30 else f"{seconds:.0f} s ago"
