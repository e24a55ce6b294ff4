"""`fedglm client plan`: the terms of a server's runs, shown before the policy permits them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedglm.cli import options


def plan(
    terms: Annotated[Path, typer.Argument(metavar="TERMS", help="What fedglm run --terms wrote at the server.")],
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="The site's folder.")] = Path(),
    as_json: options.Json = False,
) -> None:
    """Show what a server's runs will do here, and whether policy.toml permits them.

    [bold]fedglm client plan first.plan .[/bold]

    To permit just these runs, put the SHA-256 that it prints into plans of
    policy.toml, then fedglm client sign-policy. Exits with 2 while a rule is
    broken.
    """
    from dataclasses import asdict

    from fedglm.client.site.folder import open_site
    from fedglm.client.site.plan_terms import evaluate_terms, read_terms

    result = evaluate_terms(open_site(folder), read_terms(terms))
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=1))
    else:
        _print_terms(result.sha256, result.meaning, result.epsilon, result.broken)
    if result.broken:
        raise typer.Exit(2)


def _print_terms(sha256: str, meaning: dict[str, str], epsilon: float | None, broken: dict[str, str]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fedglm.cli.terminal.tables import wide_console

    console, table = wide_console(), Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    for name, value in meaning.items():
        table.add_row(name, escape(value))
    if epsilon is not None:
        table.add_row("spends", f"epsilon {epsilon:.2f} by a whole run, at the delta of policy.toml")
    console.print(table)
    for rule, reason in broken.items():
        console.print(f"[yellow]not permitted by {rule}:[/yellow] {escape(reason)}", highlight=False)
    if not broken:
        console.print("[green]policy.toml permits it[/green]")
    console.print(f'plans = ["{sha256}"]', markup=False, highlight=False, soft_wrap=True)
