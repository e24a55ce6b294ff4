"""`fedglm demo`: a deployed federation on this machine, in one command."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from fedglm.cli import options
from fedglm.cli.errors import INTERRUPTED


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything; a new or an empty one.")] = Path(
        "fedglm-demo"
    ),
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave server and sites running, and say how they are stopped.")
    ] = False,
    open_page: Annotated[bool, typer.Option("--open", help="Show the report in a browser.")] = False,
    as_json: options.Json = False,
) -> None:
    """Deploy a server and three sites on this machine, run and verify, stop: two minutes.

    [bold]fedglm demo[/bold]

    For real: a SuperLink and three SuperNodes as processes of their own, TLS,
    keys of each site's own, policies that are signed, differential privacy,
    and built-in data dealt to the sites. Each command is shown as you would
    type it. DIR is then a template to copy: its README.txt lists the commands
    for the server and for each site, and what a real deployment changes.

    Ctrl-C ends all that was started.
    """
    from fedglm.cli.demo.commands import CommandRunner
    from fedglm.cli.demo.demonstration import run_demo
    from fedglm.cli.demo.progress import DemoProgress

    command = click.get_current_context().find_root().command
    try:
        with DemoProgress(quiet=as_json) as progress:
            summary = run_demo(out, lambda log: CommandRunner(command, log), progress, keep=keep)
    except KeyboardInterrupt:
        typer.echo(f"stopped by Ctrl-C: all that was started has ended; {out} holds what was written", err=True)
        sys.exit(INTERRUPTED)
    if as_json:
        typer.echo(json.dumps(summary, indent=1))
    else:
        _print_summary(summary)
    if open_page:
        import webbrowser

        webbrowser.open(Path(summary["report"]).absolute().as_uri())


def _print_summary(summary: dict[str, Any]) -> None:
    seconds = ", ".join(f"{stage} {value:g} s" for stage, value in summary["seconds"].items())
    typer.echo(f"{summary['sites']} sites, {summary['rounds']} rounds, model {summary['model_sha256'][:16]}; {seconds}")
    if summary["accuracy"] is not None:
        typer.echo(f"accuracy {summary['accuracy']:.2%} on held-out records, loss {summary['loss']:.4f}")
    typer.echo(f"private at epsilon {summary['epsilon_at_most']:g}; records: {summary['verdict']}")
    typer.echo(f"report: {summary['report']}")
    typer.echo(f"audit report: {summary['audit_report']}")
    typer.echo(f"a template to copy, with all commands in its README.txt: {summary['folder']}")
    if summary["running"]:
        typer.echo("server and sites go on; to stop them:")
        for line in summary["to_stop"]:
            typer.echo(f"  {line}")
    else:
        typer.echo("server and sites have ended; nothing is left running")
