"""The command `fedglm`: collects the subcommands, one file each, and turns errors into one line."""

import sys
from functools import cache
from io import TextIOWrapper
from typing import Annotated

import click
import typer
from click.exceptions import NoArgsIsHelpError

from fedglm.cli import device
from fedglm.cli.audit import app as audit
from fedglm.cli.client import app as client
from fedglm.cli.compare import compare
from fedglm.cli.demo.app import demo
from fedglm.cli.errors import INTERRUPTED, explain
from fedglm.cli.extras import require_extras
from fedglm.cli.generate import generate
from fedglm.cli.import_base import import_base
from fedglm.cli.light.export_onnx import export_onnx
from fedglm.cli.light.validate import validate
from fedglm.cli.lighten import lighten
from fedglm.cli.predict import predict
from fedglm.cli.provision import provision
from fedglm.cli.run import run
from fedglm.cli.server import app as server
from fedglm.cli.simulate import simulate
from fedglm.cli.watch import watch
from fedglm.privacy.keys.passphrase import set_prompt

app = typer.Typer(
    name="fedglm",
    help="Federated learning of a lightweight GLM, with coded communication both ways.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
app.command()(simulate)
app.command()(compare)
app.command()(generate)
app.command()(predict)
app.command()(validate)
app.command()(lighten)
app.command()(export_onnx)
app.add_typer(audit.app, name="audit")
app.command()(demo)
app.command()(provision)
app.command()(run)
app.command()(watch)
app.command()(import_base)
app.add_typer(server.app, name="server")
app.add_typer(client.app, name="client")
app.add_typer(device.app, name="device")
require_extras(app)


def _print_version(requested: bool) -> None:
    if requested:
        from importlib.metadata import version

        typer.echo(f"fedglm {version('fedglm')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None: ...


@cache
def _build_command() -> click.Command:
    """Build the whole command line: 10 ms, which a process that calls `main` often pays once."""
    return typer.main.get_command(app)


def main() -> None:
    """Run the command line; exit codes: 0 success, 2 an error the user can fix, 130 Ctrl-C, 1 a bug (traceback)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal may know fewer characters than a model or a field has
            stream.reconfigure(errors="replace")
    if sys.stdin is not None and sys.stdin.isatty():
        set_prompt(lambda path: str(typer.prompt(f"Passphrase of {path}", hide_input=True, err=True)))
    try:
        code = _build_command()(standalone_mode=False)  # typer returns the exit code of the command
        if code == INTERRUPTED:  # it swallows Ctrl-C too
            raise KeyboardInterrupt
        sys.exit(code or 0)
    except NoArgsIsHelpError:  # typer has printed the help already
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("stopped by Ctrl-C; what was finished is kept, and --resume goes on", err=True)
        sys.exit(INTERRUPTED)
    except Exception as exc:
        explained = explain(exc)
        if explained is None:
            raise
        line, exit_code = explained
        typer.echo(f"fedglm: {line}", err=True)
        sys.exit(exit_code)
