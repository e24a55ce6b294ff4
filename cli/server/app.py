"""`fedglm server`: the sites of a project, and its SuperLink."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedglm.cli import options
from fedglm.cli.server.metrics import metrics

if TYPE_CHECKING:  # else `--help` would wait for flwr
    from fedglm.cli.process.daemon import Daemon
    from fedglm.server.project.folder import Project
    from fedglm.server.superlink.control import Changes

app = typer.Typer(help="A federation's server: its sites and its SuperLink.", no_args_is_help=True)

ProjectFolder = Annotated[Path, typer.Option("--project", "-C", metavar="DIR", help="The project's folder.")]

_HERE = Path()


@app.command()
def enrol(
    file: Annotated[Path, typer.Argument(metavar="SITE.pub", help="What the site handed over.")],
    project: ProjectFolder = _HERE,
    replace: Annotated[bool, typer.Option("--replace", help="Revoke the keys that the site had before.")] = False,
    as_json: options.Json = False,
) -> None:
    """Let a site take part: check and keep its public keys.

    [bold]fedglm server enrol berlin.pub -C fl[/bold]

    Call the site, at a number that you know from elsewhere, and compare the
    two fingerprints before the next run.
    """
    from fedglm.server.project.enrolment import enrol as enrol_site

    opened = _open(project)
    done = enrol_site(opened, file, replace=replace)
    changes = _update_superlink(opened)
    name, fingerprints = done.identity.name, done.identity.fingerprints
    if as_json:
        output = {
            "site": name,
            "new": done.is_new,
            "replaced": done.replaced.fingerprints if done.replaced else None,
            "fingerprints": fingerprints,
            "registered": changes is not None,
        }
        typer.echo(json.dumps(output, indent=1))
        return
    typer.echo(f"{name} is enrolled{'' if done.is_new else ' already'}, with keys made {done.identity.made}")
    if done.replaced is not None:
        typer.echo(f"its keys made {done.replaced.made} are revoked")
    typer.echo("compare by telephone, before the next run:")
    typer.echo(f"  flower   {fingerprints['flower']}")
    typer.echo(f"  signing  {fingerprints['signing']}")
    _print_changes(changes, "its node is registered when the SuperLink starts: fedglm server start")


@app.command()
def revoke(
    site: Annotated[str, typer.Argument(metavar="SITE", help="Name of the site.")],
    project: ProjectFolder = _HERE,
) -> None:
    """Let a site take part no longer; its keys are never taken again, and a run under way goes on without it."""
    from fedglm.server.project.enrolment import revoke as revoke_site

    opened = _open(project)
    identity = revoke_site(opened, site)
    typer.echo(f"{site} is revoked, with keys made {identity.made}; with new keys it can be enrolled again")
    _print_changes(_update_superlink(opened), "the SuperLink does not run; it will not know the site when it starts")


@app.command()
def start(
    project: ProjectFolder = _HERE,
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay, for systemd or a container.")] = False,
) -> None:
    """Check everything, then start the SuperLink and register the enrolled sites."""
    from fedglm.cli.process.flower_environment import make_flower_environment
    from fedglm.cli.process.supervisor import make_supervised_command
    from fedglm.server.project.folder import PROJECT
    from fedglm.server.superlink.start_report import delete_report, read_report

    opened = _open(project)
    daemon = _daemon(opened)
    _check(opened, daemon)
    opened.write_flower_settings()
    argv = [sys.executable, "-m", "fedglm.server.superlink.main"]
    env = make_flower_environment(opened.flower_home) | {PROJECT: str(opened.folder)}
    delete_report(opened)

    def is_up() -> bool:
        return read_report(opened) is not None

    def print_report() -> None:
        if (report := read_report(opened)) is None:  # the SuperLink has ended meanwhile
            return
        typer.echo(f"the SuperLink is up; sites reach it at {opened.settings.address}")
        if report.orphans:
            typer.echo("a run was under way when the last SuperLink ended: fedglm run --resume goes on with it")
        _print_changes(report.changes, "")

    if foreground:
        raise typer.Exit(daemon.run(argv, env, ready=is_up, once_ready=print_report))
    pid = daemon.start(make_supervised_command(argv, daemon.log), env, ready=is_up)
    print_report()
    typer.echo(f"process {pid}; log {daemon.log}")


@app.command()
def stop(project: ProjectFolder = _HERE) -> None:
    """End the SuperLink and all that it started; a run goes on later with fedglm run --resume."""
    stopped = _daemon(_open(project)).stop()
    typer.echo("the SuperLink has ended" if stopped else "no SuperLink runs")


@app.command()
def cancel(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    project: ProjectFolder = _HERE,
) -> None:
    """End a run that is under way; fedglm run --name RUN --resume goes on with it later."""
    from fedglm.server.deployment.run_file import check_run_name
    from fedglm.server.deployment.submission import cancel_run
    from fedglm.server.superlink.control import Control

    opened = _open(project)
    with Control(opened) as control:
        cancel_run(opened, control, check_run_name(run))
    typer.echo(f"{run} is cancelled; fedglm run -C {project} --name {run} --resume goes on with it")


@app.command()
def status(project: ProjectFolder = _HERE, as_json: options.Json = False) -> None:
    """Show the SuperLink, the certificate, the sites and the runs."""
    from fedglm.cli.server.status import describe_server, print_status

    opened = _open(project)
    description = describe_server(opened, _daemon(opened))
    if as_json:
        typer.echo(json.dumps(description, indent=1))
    else:
        print_status(description)


app.command()(metrics)


def _open(folder: Path) -> "Project":
    from fedglm.server.project.folder import Project

    return Project.open(folder)


def _daemon(project: "Project") -> "Daemon":
    from fedglm.cli.process.daemon import Daemon

    return Daemon(project.state, "superlink")


def _check(project: "Project", daemon: "Daemon") -> None:
    """Refuse to start if a check fails, and print warnings of what will fail soon."""
    from fedglm.cli.process.daemon import DaemonError
    from fedglm.cli.terminal.findings import refuse_failures
    from fedglm.server.errors import ProjectError
    from fedglm.server.superlink.preflight import check

    if (pid := daemon.pid()) is not None:
        raise DaemonError(f"the SuperLink runs already, as process {pid}: see fedglm server status")
    refuse_failures(check(project), ProjectError, lambda finding: finding.sentence(": "), labels=("note", "also"))


def _update_superlink(project: "Project") -> "Changes | None":
    """Register the enrolled sites with a running SuperLink, and remove others; None where none runs."""
    if _daemon(project).pid() is None:
        return None
    from fedglm.server.superlink.control import Control, reconcile

    with Control(project) as control:
        return reconcile(project, control)


def _print_changes(changes: "Changes | None", otherwise: str) -> None:
    if changes is None:
        typer.echo(otherwise)
        return
    if changes.registered:
        typer.echo(f"registered: {', '.join(changes.registered)}")
    if changes.removed:
        typer.echo(f"taken off the SuperLink's list: {len(changes.removed)} that are not enrolled")
    for name in changes.unusable:
        typer.echo(
            f"note: the SuperLink took the key of {name} off its list before, and takes no key twice: let the site "
            "make new keys, and enrol them with --replace",
            err=True,
        )
